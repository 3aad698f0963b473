#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "introspect/circuits/circuit.h"
#include "introspect/core/check.h"

namespace introspect::circuits {

namespace {

constexpr int64_t kWidth = 52, kHeight = 22, kGapX = 22, kGapY = 34, kMargin = 16, kAside = 16, kSteps = 3;
constexpr int64_t kMostEdges = 2000;
constexpr double kThickest = 4.5;

struct Box {
  int64_t x = 0, y = 0;
};

/// The rows of a picture from below: input, each layer's heads and its MLP, logits; nodes outside the circuit are not drawn.
std::vector<std::vector<int64_t>> rows_of(const Circuit& circuit) {
  const auto& nodes = circuit.nodes;
  std::map<int64_t, std::vector<int64_t>> rows;
  for (const int64_t s : circuit.senders()) {
    if (s == 0) continue;
    const int64_t layer = (s - 1) / (nodes.n_heads + 1);
    const bool above = s == nodes.mlp(layer) && !nodes.parallel;
    rows[2 * layer + (above ? 1 : 0)].push_back(s);
  }
  std::vector<std::vector<int64_t>> out{{0}};
  for (auto& [at, row] : rows) out.push_back(std::move(row));
  out.push_back({nodes.n_senders()});
  return out;
}

/// "<k>" drawn small: which input of a head a line goes into.
char input_of(const std::string& receiver) {
  return receiver.ends_with('>') ? receiver[receiver.size() - 2] : '\0';
}

}  // namespace

std::string Circuit::svg() const {
  const auto drawn = edges();
  check<std::invalid_argument>(static_cast<int64_t>(drawn.size()) <= kMostEdges,
                               "Circuit::svg: a picture has at most ", kMostEdges, " edges, got ",
                               drawn.size(), "; take fewer with top");
  const auto rows = rows_of(*this);
  // A column for each number that a head has, and one for MLPs; each row a little aside, so that lines pass between boxes.
  const auto column_of = [&](int64_t s) { return (s - 1) % (nodes.n_heads + 1); };
  std::set<int64_t> columns;
  for (const int64_t s : senders())
    if (s > 0) columns.insert(column_of(s));
  const auto n_columns = std::max<int64_t>(1, static_cast<int64_t>(columns.size()));
  const int64_t width = 2 * kMargin + n_columns * (kWidth + kGapX) + kSteps * kAside;
  const auto height = 2 * kMargin + static_cast<int64_t>(rows.size()) * (kHeight + kGapY) - kGapY;
  std::map<int64_t, Box> boxes;
  for (size_t at = 0; at < rows.size(); ++at)
    for (const int64_t s : rows[at]) {
      const bool is_end = s == 0 || s == nodes.n_senders();
      const auto column = std::distance(columns.begin(), columns.lower_bound(column_of(s)));
      const int64_t x =
          is_end ? (width - kWidth) / 2
                 : kMargin + column * (kWidth + kGapX) + static_cast<int64_t>(at) % (kSteps + 1) * kAside;
      boxes[s] = {x, height - kMargin - kHeight - static_cast<int64_t>(at) * (kHeight + kGapY)};
    }

  std::ostringstream out;
  out << R"(<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" width=")" << width
      << "\" height=\"" << height << "\">\n";
  const double largest = drawn.empty() ? 0 : std::abs(drawn.front().score);
  for (auto edge = drawn.rbegin(); edge != drawn.rend(); ++edge) {  // the strongest on top
    const auto fed = nodes.fed_by(edge->receiver);
    const auto letter = input_of(nodes.receiver_name(edge->receiver));
    const int64_t last = edge->receiver == nodes.logits() ? nodes.n_senders() : fed.first + fed.n - 1;
    for (int64_t to = edge->receiver == nodes.logits() ? last : fed.first; to <= last; ++to) {
      if (!boxes.contains(to)) continue;  // a head of the group that is not in the circuit
      const auto [x1, y1] = boxes.at(edge->sender);
      const auto [x2, y2] = boxes.at(to);
      const int64_t enters = letter == 'q' ? kWidth / 4 : letter == 'v' ? 3 * kWidth / 4 : kWidth / 2;
      const double strength = largest > 0 ? std::abs(edge->score) / largest : 1;
      const int64_t bottom = y2 + kHeight, middle = (y1 + bottom) / 2;
      out << "<path fill=\"none\" stroke=\"" << (edge->score < 0 ? "#c05621" : "#2b6cb0")
          << "\" stroke-opacity=\"0.7\""
          << " stroke-width=\"" << 0.5 + (kThickest - 0.5) * strength << "\" d=\"M" << x1 + kWidth / 2 << ' '
          << y1 << " C" << x1 + kWidth / 2 << ' ' << middle << ' ' << x2 + enters << ' ' << middle << ' '
          << x2 + enters << ' ' << bottom << "\"><title>" << nodes.sender_name(edge->sender) << "-&gt;"
          << nodes.sender_name(to);
      if (letter != '\0') out << "&lt;" << letter << "&gt;";
      out << ' ' << edge->score << "</title></path>\n";
    }
  }
  for (const auto& [s, box] : boxes) {
    const bool is_head = s > 0 && s < nodes.n_senders() && (s - 1) % (nodes.n_heads + 1) < nodes.n_heads;
    out << "<rect x=\"" << box.x << "\" y=\"" << box.y << "\" width=\"" << kWidth << "\" height=\"" << kHeight
        << "\" rx=\"4\" fill=\"" << (is_head ? "#ebf8ff" : "#edf2f7") << "\" stroke=\"#4a5568\"/>\n<text x=\""
        << box.x + kWidth / 2 << "\" y=\"" << box.y + 15 << "\" text-anchor=\"middle\">"
        << nodes.sender_name(s) << "</text>\n";
  }
  out << "</svg>\n";
  return out.str();
}

}  // namespace introspect::circuits

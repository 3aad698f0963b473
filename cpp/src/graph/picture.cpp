#include <algorithm>
#include <map>
#include <sstream>

#include "introspect/core/check.h"
#include "introspect/graph/graph.h"

namespace introspect::graph {

namespace {

constexpr int64_t kWidth = 132, kHeight = 34, kGapX = 36, kGapY = 12, kMargin = 14;
constexpr int64_t kMostNodes = 400;  // more are a texture, not a picture

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

/// At most twelve bytes of UTF-8, and no part of a character.
std::string shortened(const std::string& text) {
  if (text.size() <= 12) return text;
  size_t n = 12;
  while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) --n;
  return text.substr(0, n);
}

/// "add 4 at 8-12": operator, strength and the layers from first to last.
std::string summary(const hooks::Intervention& i) {
  const auto first = i.values.begin()->first, last = i.values.rbegin()->first;
  std::ostringstream out;
  out << i.op << ' ' << i.strength << " at " << first;
  if (last != first) out << '-' << last;
  return out.str();
}

}  // namespace

std::string Graph::svg() const {
  check<std::invalid_argument>(size() <= kMostNodes, "Graph::svg: a picture has at most ", kMostNodes,
                               " nodes, got ", size());
  std::vector<int64_t> column(nodes_.size(), 0);
  std::vector<std::vector<NodeId>> children(nodes_.size());
  std::vector<NodeId> roots;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (!nodes_[n].parent) {
      roots.push_back(static_cast<NodeId>(n));
      continue;
    }
    const auto parent = static_cast<size_t>(*nodes_[n].parent);
    column[n] = column[parent] + 1;
    children[parent].push_back(static_cast<NodeId>(n));
  }
  // Leaves one under another, a parent in the middle of its children. Children have larger numbers than parents.
  std::vector<double> row(nodes_.size(), 0);
  double leaves = 0;
  std::vector<NodeId> order, stack(roots.rbegin(), roots.rend());
  while (!stack.empty()) {
    order.push_back(stack.back());
    stack.pop_back();
    const auto& below = children[static_cast<size_t>(order.back())];
    stack.insert(stack.end(), below.rbegin(), below.rend());
    if (below.empty()) row[static_cast<size_t>(order.back())] = leaves++;
  }
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    const auto& below = children[static_cast<size_t>(*it)];
    if (!below.empty())
      row[static_cast<size_t>(*it)] =
          (row[static_cast<size_t>(below.front())] + row[static_cast<size_t>(below.back())]) / 2;
  }
  std::map<NodeId, int64_t> n_reads;
  for (const auto& [node, read] : reads_) ++n_reads[node];

  const auto x_of = [&](size_t n) { return kMargin + column[n] * (kWidth + kGapX); };
  const auto y_of = [&](size_t n) {
    return kMargin + static_cast<int64_t>(row[n] * static_cast<double>(kHeight + kGapY));
  };
  const int64_t columns = nodes_.empty() ? 0 : *std::max_element(column.begin(), column.end()) + 1;
  std::ostringstream out;
  out << R"(<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" width=")"
      << 2 * kMargin + columns * (kWidth + kGapX) << R"(" height=")"
      << 2 * kMargin + static_cast<int64_t>(leaves) * (kHeight + kGapY) << "\">\n";
  const auto line = [&](size_t from, size_t to, const char* style) {
    const int64_t x1 = x_of(from) + kWidth, y1 = y_of(from) + kHeight / 2, x2 = x_of(to),
                  y2 = y_of(to) + kHeight / 2, middle = (x1 + x2) / 2;
    out << "<path fill=\"none\" " << style << " d=\"M" << x1 << ' ' << y1 << " C" << middle << ' ' << y1
        << ' ' << middle << ' ' << y2 << ' ' << x2 << ' ' << y2 << "\"/>\n";
  };
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (nodes_[n].parent) line(static_cast<size_t>(*nodes_[n].parent), n, R"(stroke="#9aa5b1")");
    if (nodes_[n].source >= 0)
      line(static_cast<size_t>(nodes_[n].source), n, R"(stroke="#b7791f" stroke-dasharray="4 3")");
  }
  for (size_t n = 0; n < nodes_.size(); ++n) {
    const auto& node = nodes_[n];
    const bool splice = node.model < 0, foreign = node.model > 0, steered = !node.interventions.empty();
    const char* fill = splice ? "#fefcbf" : foreign ? "#e9d8fd" : steered ? "#fed7d7" : "#edf2f7";
    std::string first = splice ? concat("splice ", node.first, "-", node.last - 1)
                               : concat(node.tokens.size(), node.tokens.size() == 1 ? " token" : " tokens");
    if (foreign) first += ", " + shortened(models_[static_cast<size_t>(node.model)]->cfg().model_name);
    std::string second;
    if (steered) second = summary(node.interventions.front());
    if (node.interventions.size() > 1) second += concat(" +", node.interventions.size() - 1);
    if (const auto reads = n_reads.find(static_cast<NodeId>(n)); reads != n_reads.end())
      second +=
          concat(second.empty() ? "" : ", ", "read", reads->second > 1 ? concat(" x", reads->second) : "");
    const int64_t x = x_of(n), y = y_of(n);
    out << "<rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << kWidth << "\" height=\"" << kHeight
        << "\" rx=\"4\" fill=\"" << fill << "\" stroke=\"#4a5568\"/>\n"
        << "<text x=\"" << x + 6 << "\" y=\"" << y + 14 << "\">" << escaped(first) << "</text>\n"
        << "<text x=\"" << x + 6 << "\" y=\"" << y + 28 << "\" fill=\"#4a5568\">" << escaped(second)
        << "</text>\n";
  }
  out << "</svg>\n";
  return out.str();
}

}  // namespace introspect::graph

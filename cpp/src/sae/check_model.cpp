#include <cctype>
#include <charconv>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/sae/splice.h"

#include "sae/sites.h"

namespace introspect::sae {
namespace {

/// "EleutherAI/pythia-70m-deduped.gguf" as "pythia70mdeduped".
std::string plain_name(const std::string& name) {
  auto last = name.substr(name.find_last_of("/\\") + 1);
  if (last.ends_with(".gguf")) last.resize(last.size() - 5);
  std::string out;
  for (const char c : last)
    if (std::isalnum(static_cast<unsigned char>(c))) out += static_cast<char>(std::tolower(c));
  return out == "gpt2small" ? "gpt2" : out;
}

int64_t width_at(const hooks::HookPoints& points, hooks::Point point) {
  return points.width(point).value_or(0) * points.heads(point).value_or(1);
}

hooks::Site checked_site(const hooks::HookPoints& points, const std::string& name, int64_t width,
                         const char* does) {
  const auto site = points.parse(name);
  check<HookError>(hooks::position_axis(site.point) == 1,
                   "check_model: a dictionary does not stand at scores or patterns, got ", name);
  check<ShapeError>(width_at(points, site.point) == width, "check_model: the dictionary ", does, " ", width,
                    " wide, and ", name, " of this model is ", width_at(points, site.point), " wide");
  return site;
}

/// True if what is written to the stream has no mean, as far as the embedding shows.
bool is_centred(const models::Model& model) {
  const auto W_E = model.weights()
                       .W_E.rows(0, std::min<int64_t>(model.cfg().d_vocab, 64))
                       .dense()
                       .to(torch::kCPU, torch::kFloat64);
  const auto mean = W_E.mean(-1).abs().max().item<double>(), size = W_E.abs().mean().item<double>();
  const bool half = model.dtype() == torch::kBFloat16 || model.dtype() == torch::kFloat16;
  return mean < (half ? 1e-2 : 1e-5) * size;
}

void warn_of_name(const DictionaryOrigin& origin, const models::Model& model, bool knows_hash,
                  std::vector<std::string>& warnings) {
  const auto& mine = model.cfg().model_name;
  if (knows_hash) return;
  if (origin.model_name.empty()) {
    warnings.push_back(concat(
        "the dictionary does not say which model it was trained on; nothing shows that it was '", mine, "'"));
  } else if (plain_name(origin.model_name) != plain_name(mine)) {
    warnings.push_back(
        concat("the dictionary was trained on '", origin.model_name, "', and this model is '", mine, "'"));
  }
}

void warn_of_text(const DictionaryOrigin& origin, const models::Model& model,
                  std::vector<std::string>& warnings) {
  const auto& cfg = model.cfg();
  if (origin.context_size && *origin.context_size > cfg.n_ctx)
    warnings.push_back(concat("the dictionary was trained on contexts of ", *origin.context_size,
                              " tokens, longer than this model's ", cfg.n_ctx));
  if (!origin.prepend_bos || !model.has_tokenizer()) return;
  const bool adds = model.tokenizer().adds_bos();
  if (*origin.prepend_bos != adds)
    warnings.push_back(
        adds ? "the dictionary was trained on texts without a BOS token, which this tokenizer adds"
             : "the dictionary was trained on texts with a BOS token in front, which this "
               "tokenizer does not add: put it there");
}

void warn_of_centring(const DictionaryOrigin& origin, const models::Model& model,
                      std::vector<std::string>& warnings) {
  if (model.cfg().normalization_type != "LN") return;  // nobody centres others
  const bool centred = is_centred(model);
  if (origin.centers_writing_weights == centred) return;
  // Of a dictionary that says nothing at all, nothing is known of the weights either.
  if (!origin.centers_writing_weights && origin.model_name.empty() && origin.model_hash.empty()) return;
  warnings.push_back(centred ? "this model has centred writing weights, and the dictionary was trained "
                               "without: its inputs differ "
                               "by their mean"
                             : "the dictionary was trained with centred writing weights, and this model has "
                               "the checkpoint's own: "
                               "load it with center_writing_weights=True");
}

}  // namespace

hooks::Site parse_site(std::string_view name) {
  constexpr std::string_view kBlocks = "blocks.";
  if (!name.starts_with(kBlocks)) return {hooks::parse_point(name), -1};
  auto rest = name.substr(kBlocks.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  const bool numbered = error == std::errc() && end != rest.data() + rest.size() && *end == '.' && layer >= 0;
  if (!numbered) return {hooks::parse_point(name), -1};  // which says what there is
  return {hooks::parse_point(rest.substr(static_cast<size_t>(end - rest.data()) + 1)), layer};
}

std::pair<std::string, std::string> named_sites(const char* who, const Dictionary& dictionary,
                                                const SpliceSites& sites) {
  const auto& origin = dictionary.origin();
  const auto one = [&](const std::string& given, const std::vector<DictionarySite>& known,
                       const std::string& otherwise, const char* what) {
    if (!given.empty()) return given;
    check<ConfigError>(known.size() <= 1, who, ": a dictionary of ", known.size(),
                       " sites side by side cannot stand at one hook point");
    const auto& name = known.empty() || known.front().hook_name.empty() ? otherwise : known.front().hook_name;
    check<ConfigError>(!name.empty(), who, ": the dictionary does not say where it ", what,
                       "; give the name of the hook point");
    return name;
  };
  const auto input = one(sites.hook_name, origin.inputs, {}, "reads");
  // A dictionary put elsewhere writes where it reads, unless it is told another point.
  const bool moved = !sites.hook_name.empty() && sites.hook_name_out.empty() &&
                     dictionary.d_in() == dictionary.d_out() &&
                     (origin.outputs.empty() || origin.outputs == origin.inputs);
  return {input, moved ? input : one(sites.hook_name_out, origin.outputs, input, "writes")};
}

torch::Tensor decoder_divisors(const Dictionary& dictionary, torch::ScalarType dtype) {
  const auto norms_F = dictionary.decoder_norms().to(dtype);
  return at::where(norms_F > 0, norms_F, at::ones_like(norms_F));
}

torch::Tensor side_by_side(const torch::Tensor& x, int64_t width, const char* does) {
  const auto out = x.dim() == 4 ? x.flatten(-2) : x;
  check<ShapeError>(out.size(-1) == width, "splice: the dictionary ", does, " ", width,
                    " wide, and what is selected is ", out.size(-1), " wide (of heads it wants all)");
  return out;
}

SiteCheck check_model(const Dictionary& dictionary, const models::Model& model, const SpliceSites& sites,
                      bool any_model) {
  const auto [input_name, output_name] = named_sites("check_model", dictionary, sites);
  const auto points = models::hook_points(model.cfg());
  SiteCheck out{checked_site(points, input_name, dictionary.d_in(), "reads"),
                checked_site(points, output_name, dictionary.d_out(), "writes"),
                {}};
  const auto& origin = dictionary.origin();
  const bool knows_hash = !origin.model_hash.empty();
  if (knows_hash && origin.model_hash != model.hash()) {
    const auto what = concat("the dictionary was trained on '", origin.model_name, "' (hash ",
                             origin.model_hash.substr(0, 12), "), and this model is '",
                             model.cfg().model_name, "' (hash ", model.hash().substr(0, 12), ")");
    check<ConfigError>(any_model, "check_model: ", what,
                       "; any_model=True lets it stand in a fine-tuned or processed copy");
    out.warnings.push_back(what);
  }
  warn_of_name(origin, model, knows_hash, out.warnings);
  warn_of_text(origin, model, out.warnings);
  warn_of_centring(origin, model, out.warnings);
  return out;
}

}  // namespace introspect::sae

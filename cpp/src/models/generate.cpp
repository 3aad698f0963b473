#include "introspect/models/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <unordered_set>

#include "core/excerpt.h"
#include "introspect/core/check.h"
#include "introspect/models/finite.h"
#include "models/decode_step.h"

namespace introspect::models {

namespace {

void check_options(const GenerateOptions& o) {
  check<std::invalid_argument>(o.max_new_tokens >= 0, "generate: max_new_tokens must not be negative, got ",
                               o.max_new_tokens);
  check<std::invalid_argument>(std::isfinite(o.temperature) && o.temperature >= 0,
                               "generate: temperature must be 0 or more, got ", o.temperature);
  check<std::invalid_argument>(o.top_k >= 0, "generate: top_k must be 0 (all) or more, got ", o.top_k);
  check<std::invalid_argument>(o.top_p > 0 && o.top_p <= 1, "generate: top_p must be in (0, 1], got ",
                               o.top_p);
  check<std::invalid_argument>(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0,
                               "generate: repetition_penalty must be positive, got ", o.repetition_penalty);
}

/// Chooses the next token of one row.
class Sampler {
 public:
  Sampler(const GenerateOptions& options, int64_t row, const std::vector<int64_t>& context)
      : options_(options),
        random_(options.row_seeds.empty() ? mixed(options.seed, row)
                                          : mixed(options.row_seeds.at(static_cast<size_t>(row)), 0)),
        seen_(context.begin(), context.end()) {}

  int64_t next(float* logits, int64_t V) {
    if (options_.repetition_penalty != 1.0) penalise(logits);
    const int64_t token =
        options_.temperature == 0 ? std::max_element(logits, logits + V) - logits : draw(logits, V);
    seen_.insert(token);
    return token;
  }

 private:
  /// One seed for each row, far from its neighbours' (the finaliser of splitmix64, Steele et al. 2014).
  static uint64_t mixed(uint64_t seed, int64_t row) {
    uint64_t z = seed + 0x9e3779b97f4a7c15ULL * (static_cast<uint64_t>(row) + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

  void penalise(float* logits) const {
    const auto penalty = static_cast<float>(options_.repetition_penalty);
    for (const int64_t token : seen_)
      logits[token] = logits[token] < 0 ? logits[token] * penalty : logits[token] / penalty;
  }

  int64_t draw(const float* logits, int64_t V) {
    const int64_t n = options_.top_k > 0 ? std::min(options_.top_k, V) : V;
    std::vector<int64_t> order(static_cast<size_t>(V));
    std::iota(order.begin(), order.end(), 0);
    const auto more_probable = [&](int64_t a, int64_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    };
    // Only as many are put in order as the draw looks at: 64, 256, ...
    int64_t sorted = 0;
    const auto sort_to = [&](int64_t rank) {
      while (sorted <= rank && sorted < n) {
        const int64_t next = std::min(n, std::max<int64_t>(64, 4 * sorted));
        std::partial_sort(order.begin() + sorted, order.begin() + next, order.end(), more_probable);
        sorted = next;
      }
    };
    sort_to(n < V ? n - 1 : 0);
    const double largest = logits[order[0]];
    const auto weight = [&](int64_t token) {
      return std::exp((static_cast<double>(logits[token]) - largest) / options_.temperature);
    };
    double total = 0;
    if (n == V)
      for (int64_t token = 0; token < V; ++token) total += weight(token);
    else
      for (int64_t rank = 0; rank < n; ++rank) total += weight(order[rank]);

    double mass = total;
    int64_t kept = n;
    if (options_.top_p < 1) {
      mass = 0;
      for (kept = 0; kept < n && (kept == 0 || mass < options_.top_p * total); ++kept) {
        sort_to(kept);
        mass += weight(order[kept]);
      }
    }
    double u = std::uniform_real_distribution<double>(0, mass)(random_);
    int64_t rank = 0;
    for (; rank + 1 < kept; ++rank) {
      sort_to(rank);
      const double w = weight(order[rank]);
      if (u < w) break;
      u -= w;
    }
    sort_to(rank);
    return order[rank];
  }

  const GenerateOptions& options_;
  std::mt19937_64 random_;
  std::unordered_set<int64_t> seen_;
};

/// What tokens are chosen from, on the host: logits float32 [B, V]; or, where those of a device are to be the most probable,
/// the largest logit of each row and its token, float64 [B, 2], which are a few bytes to copy.
torch::Tensor to_host(const torch::Tensor& logits_BV, const GenerateOptions& options) {
  const auto logits = logits_BV.to(torch::kFloat32);
  if (logits.is_cpu() || options.temperature != 0 || options.repetition_penalty != 1)
    return logits.to(torch::kCPU).contiguous();
  const auto [largest_B, token_B] = at::max(logits, 1);  // the first of equals, and NaN where there is one
  return at::stack({largest_B.to(torch::kFloat64), token_B.to(torch::kFloat64)}, 1).to(torch::kCPU);
}

/// The tokens of a cache [B, n] with room for `more`, if every row's context is what its cache holds; else undefined.
torch::Tensor tokens_of(const cache::KVCache& cache, const std::vector<std::vector<int64_t>>& contexts,
                        int64_t more) {
  const int64_t B = cache.shape().batch, n = cache.length();
  const auto real_BS = cache.mask().defined() ? cache.mask().cpu() : at::ones({B, n}, torch::kBool);
  auto out = at::zeros({B, n + more}, torch::kLong);
  for (int64_t b = 0; b < B; ++b) {
    const auto places = real_BS[b].nonzero().squeeze(1);
    const auto& context = contexts[static_cast<size_t>(b)];
    if (places.size(0) != static_cast<int64_t>(context.size())) return {};
    out[b].index_put_({places}, torch::tensor(context, torch::kLong));
  }
  return out;
}

}  // namespace

Step parse_step(const std::string& word) {
  if (word == "auto") return Step::kAuto;
  if (word == "plain") return Step::kPlain;
  check<std::invalid_argument>(word == "static", "generate: the step must be auto, plain or static, got ",
                               excerpt(word));
  return Step::kStatic;
}

bool replays_steps(torch::Device device) {
  return DeviceRecording::is_available(device);
}

std::vector<std::vector<int64_t>> generate_from(const Model& model, cache::KVCache& cache,
                                                const torch::Tensor& last_logits_BV,
                                                const std::vector<std::vector<int64_t>>& contexts,
                                                const GenerateOptions& options) {
  check_options(options);
  const at::NoGradGuard no_grad;
  const int64_t B = cache.shape().batch;
  check<ShapeError>(
      last_logits_BV.dim() == 2 && last_logits_BV.size(0) == B && static_cast<int64_t>(contexts.size()) == B,
      "generate: one row of logits and one context for each of the ", B, " rows of the cache, got ",
      last_logits_BV.sizes(), " and ", contexts.size());
  check<std::invalid_argument>(options.row_seeds.empty() || options.row_seeds.size() == contexts.size(),
                               "generate: row_seeds must be one for each of the ", B, " rows, got ",
                               options.row_seeds.size());
  const int64_t n_ctx = model.cfg().n_ctx;
  check<ShapeError>(cache.length() + std::max<int64_t>(options.max_new_tokens - 1, 0) <= n_ctx,
                    "generate: ", cache.length(), " positions and ", options.max_new_tokens,
                    " new ones do not fit into n_ctx = ", n_ctx);

  std::unordered_set<int64_t> stops(options.stop_token_ids.begin(), options.stop_token_ids.end());
  if (options.stop_at_eos) {
    for (const int64_t id : model.cfg().eos_token_ids) stops.insert(id);
    if (model.has_tokenizer())
      for (const int64_t id : model.tokenizer().stop_token_ids()) stops.insert(id);
  }

  std::vector<Sampler> samplers;
  for (int64_t b = 0; b < B; ++b) samplers.emplace_back(options, b, contexts[static_cast<size_t>(b)]);
  std::vector<std::vector<int64_t>> out(static_cast<size_t>(B));
  std::vector<bool> done(static_cast<size_t>(B), false);
  int64_t running = B;
  const int64_t n_prompt = cache.length();
  const bool reads_text = options.hooks && options.hooks->reads_text();
  const auto all_tokens = reads_text ? tokens_of(cache, contexts, options.max_new_tokens) : torch::Tensor{};
  const auto same_step =
      DecodeStep::of(model, cache, options.hooks, options.max_new_tokens - 1, options.step);
  auto read_Bn = to_host(last_logits_BV, options);
  if (read_Bn.is_alias_of(last_logits_BV)) read_Bn = read_Bn.clone();  // samplers write into it
  for (int64_t step = 0; step < options.max_new_tokens; ++step) {
    auto tokens_B1 = at::zeros({B, 1}, torch::kLong);
    for (int64_t b = 0; b < B; ++b) {
      const auto row = static_cast<size_t>(b);
      if (done[row]) continue;
      const auto read_n = read_Bn[b];
      const bool is_chosen = read_n.scalar_type() == torch::kFloat64;
      check_finite("generate", model, is_chosen ? read_n.narrow(0, 0, 1) : read_n,
                   [&] { return first_not_finite(model, cache); });
      const int64_t token = is_chosen ? static_cast<int64_t>(read_n[1].item<double>())
                                      : samplers[row].next(read_n.mutable_data_ptr<float>(), read_n.size(0));
      out[row].push_back(token);
      tokens_B1[b][0] = token;
      if (options.on_token && !options.on_token(b, token)) return out;
      if (stops.contains(token)) {
        done[row] = true;
        --running;
      }
    }
    if (running == 0 || step + 1 == options.max_new_tokens) break;
    if (same_step) {
      read_Bn = to_host(same_step->forward(tokens_B1), options);
      continue;
    }
    ForwardOptions forward;
    forward.cache = &cache;
    forward.hooks = options.hooks;
    forward.logits_at = LogitsAt::kLast;
    forward.n_prompt = n_prompt;
    if (all_tokens.defined()) {
      forward.history = all_tokens.narrow(1, 0, cache.length());
      all_tokens.select(1, cache.length()).copy_(tokens_B1.select(1, 0));
    }
    read_Bn = to_host(model.forward(tokens_B1, forward).squeeze(1), options);
  }
  return out;
}

std::vector<std::vector<int64_t>> generate(const Model& model,
                                           const std::vector<std::vector<int64_t>>& prompts,
                                           const GenerateOptions& options) {
  check_options(options);
  check<std::invalid_argument>(!prompts.empty(), "generate: at least one prompt is required");
  size_t longest = 0;
  for (const auto& prompt : prompts) {
    check<std::invalid_argument>(!prompt.empty(), "generate: a prompt must hold at least one token");
    longest = std::max(longest, prompt.size());
  }
  const auto B = static_cast<int64_t>(prompts.size()), T = static_cast<int64_t>(longest);
  check<ShapeError>(T + options.max_new_tokens <= model.cfg().n_ctx, "generate: a prompt of ", T,
                    " tokens and ", options.max_new_tokens,
                    " new ones do not fit into n_ctx = ", model.cfg().n_ctx);

  const at::NoGradGuard no_grad;
  auto tokens_BT = at::zeros({B, T}, torch::kLong);
  auto mask_BT = at::zeros({B, T}, torch::kBool);
  bool padded = false;
  for (int64_t b = 0; b < B; ++b) {
    const auto& prompt = prompts[static_cast<size_t>(b)];
    const auto n = static_cast<int64_t>(prompt.size());
    const int64_t first = options.padding_side == PaddingSide::kLeft ? T - n : 0;
    tokens_BT[b].narrow(0, first, n).copy_(torch::tensor(prompt, torch::kLong));
    mask_BT[b].narrow(0, first, n).fill_(true);
    padded |= n < T;
  }
  auto cache = model.make_cache(B);
  cache.reserve(DecodeStep::capacity(T + options.max_new_tokens));
  ForwardOptions prefill;
  prefill.cache = &cache;
  prefill.hooks = options.hooks;
  prefill.logits_at = LogitsAt::kLast;
  prefill.n_prompt = T;
  if (padded) prefill.attention_mask = mask_BT;
  const auto logits_BV = model.forward(tokens_BT, prefill).squeeze(1);
  return generate_from(model, cache, logits_BV, prompts, options);
}

}  // namespace introspect::models

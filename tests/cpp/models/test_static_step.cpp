#include <catch2/catch.hpp>

#include "introspect/models/generate.h"
#include "tiny_model.h"

using namespace introspect;
using Catch::Matchers::Contains;
using introspect::testing::distance;
using introspect::testing::kFloor;
using introspect::testing::random_tensor;
using introspect::testing::tiny_model;
using models::Step;

namespace {

using Rows = std::vector<std::vector<int64_t>>;

/// Three rows of unequal lengths, padded on the left, in a cache, and what they were read out as.
struct Prompt {
  Rows rows = {{3, 4, 5, 6, 7, 8, 9, 10}, {11, 12, 13}, {14, 15, 16, 17, 18}};
  cache::KVCache cache;
  torch::Tensor logits_BV;

  explicit Prompt(const models::Model& model) : cache(model.make_cache(3)) {
    auto tokens = at::zeros({3, 8}, torch::kLong), mask = at::zeros({3, 8}, torch::kBool);
    for (int64_t b = 0; b < 3; ++b) {
      const auto row = torch::tensor(rows[static_cast<size_t>(b)], torch::kLong);
      tokens[b].narrow(0, 8 - row.size(0), row.size(0)).copy_(row);
      mask[b].narrow(0, 8 - row.size(0), row.size(0)).fill_(true);
    }
    models::ForwardOptions options;
    options.cache = &cache;
    options.attention_mask = mask;
    options.logits_at = models::LogitsAt::kLast;
    logits_BV = model.forward(tokens, options).squeeze(1);
  }

  Rows go_on(const models::Model& model, Step step, int64_t n,
             std::function<bool(int64_t, int64_t)> on_token = {}) {
    models::GenerateOptions options;
    options.max_new_tokens = n;
    options.stop_at_eos = false;
    options.step = step;
    options.on_token = std::move(on_token);
    return models::generate_from(model, cache, logits_BV, rows, options);
  }
};

void check_equal(const cache::KVCache& a, const cache::KVCache& b) {
  REQUIRE(a.length() == b.length());
  CHECK(at::equal(a.mask(), b.mask()));
  CHECK(distance(a, b) < kFloor);
}

}  // namespace

TEST_CASE("a static step leaves the tokens and the cache that passes leave", "[generate]") {
  const auto model = tiny_model(0);
  Prompt by_passes(*model), by_steps(*model);
  const auto expected = by_passes.go_on(*model, Step::kPlain, 20);
  CHECK(by_steps.go_on(*model, Step::kStatic, 20) == expected);
  check_equal(by_steps.cache, by_passes.cache);
  // It is an ordinary cache again.
  by_passes.logits_BV = by_steps.logits_BV;
  CHECK(by_steps.go_on(*model, Step::kPlain, 4) == by_passes.go_on(*model, Step::kPlain, 4));
  check_equal(by_steps.cache, by_passes.cache);
}

TEST_CASE("a static step of bfloat16 differs by its roundings", "[generate]") {
  const auto model = tiny_model(0, torch::kBFloat16);
  Prompt by_passes(*model), by_steps(*model);
  CHECK(by_steps.go_on(*model, Step::kStatic, 2) == by_passes.go_on(*model, Step::kPlain, 2));
  const double ulp = 1.0 / 128,
               largest = 8;  // of keys; a token's differ by some ulps, and by units where it is wrong
  CHECK(distance(by_steps.cache, by_passes.cache) < 4 * ulp * largest);
}

TEST_CASE("forks that are made and written to meanwhile see nothing of a static step", "[generate]") {
  const auto model = tiny_model(0);
  Prompt prompt(*model), other(*model);
  const auto expected = other.go_on(*model, Step::kPlain, 12);
  const auto parent = prompt.cache.fork();
  std::vector<cache::KVCache> forks;
  std::vector<torch::Tensor> written;
  const auto fork_and_write = [&](int64_t row, int64_t) {
    if (row > 0) return true;
    auto& fork = forks.emplace_back(prompt.cache.fork());
    models::ForwardOptions options;
    options.cache = &fork;
    options.logits_at = models::LogitsAt::kNone;
    model->forward(at::full({3, 1}, 1, torch::kLong), options);
    written.push_back(fork.keys(1).clone());
    return true;
  };
  CHECK(prompt.go_on(*model, Step::kStatic, 12, fork_and_write) == expected);
  check_equal(prompt.cache, other.cache);
  CHECK(parent.length() == 8);
  for (size_t i = 0; i < forks.size(); ++i) {
    CHECK(forks[i].length() == 9 + static_cast<int64_t>(i));
    CHECK(at::equal(forks[i].keys(1), written[i]));
  }
}

TEST_CASE("a generation that ends early leaves what it has done", "[generate]") {
  const auto model = tiny_model(0);
  Prompt prompt(*model);
  const auto rows =
      prompt.go_on(*model, Step::kStatic, 12, [n = 0](int64_t, int64_t) mutable { return ++n < 8; });
  CHECK(rows[0].size() == 3);
  CHECK(prompt.cache.length() == 10);
  CHECK_NOTHROW(prompt.cache.reserve(64));
}

TEST_CASE("a pinned cache takes one position where it is told", "[cache]") {
  cache::KVCache cache({1, 1, 2, 3}, torch::kFloat64, torch::kCPU);
  const auto first = random_tensor({1, 2, 4, 3}, 1), next = random_tensor({1, 2, 1, 3}, 2);
  cache.append(0, first, 2 * first);
  cache.commit(4, {});
  CHECK_THROWS_WITH(cache.extend(), Contains("must be pinned"));
  CHECK_THROWS_WITH(cache.pin(at::zeros({1}, torch::kLong), 3),
                    Contains("must be among those pinned, got 3"));
  const auto place = at::full({1}, 4, torch::kLong);
  cache.pin(place, 6);
  REQUIRE(cache.extend());
  const auto [keys, values] = cache.append(0, next, 2 * next);
  CHECK(at::equal(keys, at::cat({first, next, at::zeros({1, 2, 1, 3}, torch::kFloat64)}, 2)));
  CHECK(at::equal(values, 2 * keys));
  CHECK_THROWS_AS(cache.append(0, first, first), ShapeError);
  CHECK_THROWS_WITH(cache.reserve(100), Contains("stays where it is"));
  cache.commit(1, {});
  CHECK(at::equal(cache.keys(0), at::cat({first, next}, 2)));
  REQUIRE(cache.extend());
  cache.rollback();
  CHECK(cache.length(0) == 5);
  REQUIRE(cache.extend());
  cache.commit(1, {});
  CHECK_FALSE(cache.extend());
  const auto fork = cache.fork();
  cache.unpin();
  cache.append(0, next, next);
  CHECK(cache.length(0) == 7);
  CHECK(fork.length(0) == 6);
}

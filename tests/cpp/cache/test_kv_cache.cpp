#include "introspect/cache/kv_cache.h"

#include <catch2/catch.hpp>

#include "introspect/core/error.h"

using introspect::ShapeError;
using introspect::cache::KVCache;

namespace {

constexpr int64_t kLayers = 2, kBatch = 2, kHeads = 3, kHead = 4;

KVCache empty_cache() {
  return {{kLayers, kBatch, kHeads, kHead}, torch::kFloat32, torch::kCPU};
}

torch::Tensor some(int64_t positions) {
  return at::randn({kBatch, kHeads, positions, kHead});
}

/// Appends the same keys to every layer, and their negatives as values.
torch::Tensor push(KVCache& cache, int64_t positions) {
  const auto k = some(positions);
  for (int64_t layer = 0; layer < kLayers; ++layer) cache.append(layer, k, -k);
  cache.commit(positions, {});
  return k;
}

}  // namespace

TEST_CASE("an appended position is read back from every layer", "[cache]") {
  auto cache = empty_cache();
  const auto first = push(cache, 5), second = push(cache, 70);
  REQUIRE(cache.length() == 75);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    REQUIRE(at::equal(cache.keys(layer), at::cat({first, second}, 2)));
    REQUIRE(at::equal(cache.values(layer), -at::cat({first, second}, 2)));
  }
}

TEST_CASE("what happens to a fork never shows in its parent or its siblings", "[cache]") {
  auto parent = empty_cache();
  const auto prefix = push(parent, 6);
  parent.reserve(32);
  auto left = parent.fork(), right = parent.fork();
  const auto l = push(left, 3), r = push(right, 4), p = push(parent, 2);
  REQUIRE(at::equal(parent.keys(0), at::cat({prefix, p}, 2)));
  REQUIRE(at::equal(left.keys(1), at::cat({prefix, l}, 2)));
  REQUIRE(at::equal(right.values(1), -at::cat({prefix, r}, 2)));
}

TEST_CASE("forks share memory until one of them needs its own", "[cache]") {
  auto parent = empty_cache();
  push(parent, 6);
  parent.reserve(32);
  const auto* memory = parent.keys(0).const_data_ptr();
  {
    auto fork = parent.fork();
    REQUIRE(fork.keys(0).const_data_ptr() == memory);
    push(fork, 3);  // nobody else sees positions 6 to 8: in place
    REQUIRE(fork.keys(0).const_data_ptr() == memory);
    auto second = parent.fork();
    push(second, 3);  // the first fork sees them: a copy
    REQUIRE(second.keys(0).const_data_ptr() != memory);
  }
  push(parent, 1);  // the forks are gone: in place again
  REQUIRE(parent.keys(0).const_data_ptr() == memory);
}

TEST_CASE("truncate then append overwrites only what nobody else holds", "[cache]") {
  auto cache = empty_cache();
  const auto kept = push(cache, 8);
  const auto fork = cache.fork();
  cache.truncate(3);
  const auto more = push(cache, 2);
  REQUIRE(at::equal(cache.keys(0), at::cat({kept.narrow(2, 0, 3), more}, 2)));
  REQUIRE(at::equal(fork.keys(0), kept));
  REQUIRE_THROWS_AS(cache.truncate(6), std::out_of_range);
}

TEST_CASE("rollback forgets an unfinished pass", "[cache]") {
  auto cache = empty_cache();
  const auto kept = push(cache, 4);
  cache.append(0, some(3), some(3));
  cache.rollback();
  REQUIRE(at::equal(cache.keys(0), kept));
  const auto more = push(cache, 1);
  REQUIRE(at::equal(cache.keys(0), at::cat({kept, more}, 2)));
}

TEST_CASE("select_rows repeats and reorders rows, with their padding", "[cache]") {
  auto cache = empty_cache();
  const auto k = some(3);
  for (int64_t layer = 0; layer < kLayers; ++layer) cache.append(layer, k, k);
  const auto mask = torch::tensor({false, true, true, true, true, true}).view({2, 3});
  cache.commit(3, mask);
  const auto rows = cache.select_rows({1, 0, 1});
  REQUIRE(rows.shape().batch == 3);
  REQUIRE(at::equal(rows.keys(1)[1], k[0]));
  REQUIRE(at::equal(rows.keys(1)[2], k[1]));
  REQUIRE(at::equal(rows.mask()[1], mask[0]));
  REQUIRE_THROWS_AS(cache.select_rows({2}), std::out_of_range);
}

TEST_CASE("keys of another shape or dtype are refused", "[cache]") {
  auto cache = empty_cache();
  REQUIRE_THROWS_AS(cache.append(0, at::randn({1, kHeads, 2, kHead}), some(2)), ShapeError);
  REQUIRE_THROWS_AS(cache.append(0, some(2).to(torch::kFloat64), some(2).to(torch::kFloat64)), ShapeError);
}

TEST_CASE("a prefix with another cache's tail holds both, and shares what both share", "[cache]") {
  auto parent = empty_cache();
  const auto prefix = push(parent, 6);
  auto left = parent.fork(), right = parent.fork();
  const auto l = push(left, 5), r = push(right, 3);
  const auto grown = right.slice(0, 6).splice(6, 11, left);
  REQUIRE(grown.length() == 11);
  REQUIRE(at::equal(grown.keys(1), at::cat({prefix, l}, 2)));
  const auto middle = left.splice(7, 9, right);
  REQUIRE(at::equal(middle.values(0),
                    -at::cat({prefix, l.narrow(2, 0, 1), r.narrow(2, 1, 2), l.narrow(2, 3, 2)}, 2)));
  REQUIRE(left.splice(0, 6, left.fork()).keys(0).const_data_ptr() == left.keys(0).const_data_ptr());
  REQUIRE_THROWS_AS(left.splice(0, 10, right), std::out_of_range);
}

TEST_CASE("bytes are counted once however many caches share them", "[cache]") {
  auto parent = empty_cache();
  parent.reserve(10);
  push(parent, 6);
  const int64_t position = 2 * kLayers * kBatch * kHeads * kHead * static_cast<int64_t>(sizeof(float));
  REQUIRE(parent.nbytes() == 10 * position);
  REQUIRE(parent.nbytes_own() == 10 * position);
  auto fork = parent.fork();
  fork.reserve(12, 1);
  REQUIRE(fork.nbytes_shared() == 5 * position);
  REQUIRE(fork.nbytes_own() == 6 * position);
  REQUIRE(KVCache::total_nbytes({parent, fork}) == 16 * position);
}

#include "circuits/masked_run.h"

#include "introspect/core/interrupt.h"

namespace introspect::circuits {

namespace {

/// The streams that receivers read, with what is replaced in them.
class Streams {
 public:
  Streams(const torch::Tensor& out_CVU, const torch::Tensor& shared, int64_t n_senders, int64_t B, int64_t T,
          int64_t D)
      : out_(out_CVU), shared_(shared), C_(out_CVU.size(0)), B_(B), T_(T), D_(D) {
    own_ = at::empty({C_, n_senders - shared.size(0), B * T * D}, shared.options());
  }

  /// What senders [first, first + n) of every circuit write differently from now on: change [n, C * B, T, D].
  void add(int64_t first, const torch::Tensor& change) {
    const int64_t n = change.size(0);
    own_.narrow(1, first - shared_.size(0), n).copy_(change.reshape({n, C_, -1}).transpose(0, 1));
  }

  /// The streams of receivers [first, first + n) that n_before senders feed: [n, C * B, T, D]; undefined where they are x.
  torch::Tensor read(const torch::Tensor& x, int64_t first, int64_t n, int64_t n_before) const {
    const auto out = out_.narrow(1, first, n).narrow(2, 0, n_before);
    if (!out.any().item<bool>()) return {};
    const int64_t n_shared = std::min(shared_.size(0), n_before), n_own = n_before - n_shared;
    const auto weights = out.to(x.scalar_type());
    auto change =
        at::matmul(weights.narrow(2, 0, n_shared).reshape({C_ * n, n_shared}), shared_.narrow(0, 0, n_shared))
            .view({C_, n, -1});
    if (n_own > 0) change = at::baddbmm(change, weights.narrow(2, n_shared, n_own), own_.narrow(1, 0, n_own));
    change.add_(x.reshape({C_, 1, -1}));
    return change.transpose(0, 1).reshape({n, C_ * B_, T_, D_});
  }

 private:
  torch::Tensor out_, shared_, own_;
  int64_t C_, B_, T_, D_;
};

}  // namespace

MaskedRun::MaskedRun(const Decoder& decoder, int64_t first_layer, const torch::Tensor& x_BTD,
                     const torch::Tensor& clean_UBTD, const torch::Tensor& alternative)
    : decoder_(decoder), first_layer_(first_layer), x_BTD_(x_BTD), alternative_(alternative) {
  const auto& nodes = decoder.nodes();
  n_shared_ = first_layer == nodes.n_layers ? nodes.n_senders() : nodes.head(first_layer, 0);
  shared_ = (alternative.narrow(0, 0, n_shared_) - clean_UBTD.narrow(0, 0, n_shared_)).flatten(1);
}

int64_t MaskedRun::bytes() const {
  const auto& nodes = decoder_.nodes();
  const int64_t streams = nodes.n_senders() - n_shared_ + 4 * nodes.n_readers();
  return streams * x_BTD_.numel() * static_cast<int64_t>(x_BTD_.element_size());
}

torch::Tensor MaskedRun::run(const torch::Tensor& in_CUV) const {
  const at::NoGradGuard no_grad;
  const auto& nodes = decoder_.nodes();
  const int64_t C = in_CUV.size(0), B = x_BTD_.size(0), T = x_BTD_.size(1), D = x_BTD_.size(2);
  const auto out_CVU = in_CUV.logical_not().transpose(1, 2).to(x_BTD_.device());
  Streams streams(out_CVU, shared_, nodes.n_senders(), B, T, D);
  const auto change = [&](int64_t first, const torch::Tensor& written) {  // written [n, C * B, T, D]
    const auto instead = alternative_.narrow(0, first, written.size(0)).unsqueeze(1);
    streams.add(first, (instead - written.unflatten(1, {C, B})).flatten(1, 2));
  };
  auto x = x_BTD_.repeat({C, 1, 1});
  for (int64_t layer = first_layer_; layer < nodes.n_layers; ++layer) {
    check_interrupt();
    const int64_t first = nodes.first_reader(layer), mlp = nodes.mlp_reader(layer);
    const auto read = streams.read(x, first, mlp - first, nodes.n_before(first));
    const auto qkv = read.defined() ? decoder_.project_each(layer, read) : decoder_.project(layer, x);
    const auto heads = decoder_.heads(layer, decoder_.attend(layer, qkv));
    change(nodes.head(layer, 0), heads.each_HBTD);
    const auto mid = x + heads.out_BTD;
    const auto& plain = nodes.parallel ? x : mid;
    const auto read_by_mlp = streams.read(plain, mlp, 1, nodes.n_before(mlp));
    const auto written = decoder_.mlp_out(layer, read_by_mlp.defined() ? read_by_mlp[0] : plain);
    change(nodes.mlp(layer), written.unsqueeze(0));
    x = mid + written;
  }
  const auto last = streams.read(x, nodes.logits(), 1, nodes.n_senders());
  return (last.defined() ? last[0] : x).unflatten(0, {C, B});
}

}  // namespace introspect::circuits

// The CPU kernels of conjugate gradients and LARS as PyTorch ops: tensors in, tensors out, through the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/krylov.h"
#include "cpu/lars.h"
#include "vectors.h"

namespace bissl_fast::cpu {
namespace {

using torch::stable::Tensor;

Tensor segment_dots_op(const Tensor& a, const Tensor& b, const std::vector<int64_t>& lengths) {
  const auto offsets = checked_offsets(lengths, {a, b});
  const auto dots = torch::stable::new_empty(a, {static_cast<int64_t>(lengths.size())});
  with_wide_type(a, [&]<class T>(T) {
    segment_dots({offsets.data(), dots.numel()}, data<const T>(a), data<const T>(b), data<T>(dots));
  });
  return dots;
}

std::tuple<Tensor, Tensor, Tensor> cg_update_op(const Tensor& x, const Tensor& r, const Tensor& d, const Tensor& q,
                                                const Tensor& rz, const std::vector<int64_t>& lengths,
                                                const std::optional<Tensor>& inverse_diagonal) {
  const auto offsets = checked_cg(lengths, {x, r, d}, q, rz, inverse_diagonal);
  const auto curvature = torch::stable::empty_like(rz), rz_next = torch::stable::empty_like(rz);
  const auto rr_next = torch::stable::empty_like(rz);
  with_wide_type(x, [&]<class T>(T) {
    const T* scale = inverse_diagonal ? data<const T>(*inverse_diagonal) : nullptr;
    cg_update<T>({offsets.data(), rz.numel()}, {data<T>(x), data<T>(r), data<T>(d), data<const T>(q), scale},
                 {data<const T>(rz), data<T>(curvature), data<T>(rz_next), data<T>(rr_next)});
  });
  return {curvature, rz_next, rr_next};
}

void lars_step_op(const Tensors& weights, const Tensors& momenta, const Tensors& gradients, bool exclude_1d, double lr,
                  double weight_decay, double momentum, double trust) {
  if (weights.empty()) return;
  const auto offsets = checked_step(weights, momenta, gradients);
  with_wide_type(weights[0], [&]<class T>(T) {
    std::vector<LarsTensor<T>> tensors;
    for (size_t k = 0; k < weights.size(); ++k) {
      const bool adapted = weights[k].dim() != 1 || !exclude_1d;
      tensors.push_back({data<T>(weights[k]), data<T>(momenta[k]), data<const T>(gradients[k]), adapted});
    }
    lars_step<T>({offsets.data(), static_cast<int64_t>(tensors.size())}, tensors,
                 {lr, weight_decay, momentum, trust});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CPU, library) {
  library.impl("segment_dots", TORCH_BOX(&segment_dots_op));
  library.impl("cg_update", TORCH_BOX(&cg_update_op));
  library.impl("lars_step", TORCH_BOX(&lars_step_op));
}

}  // namespace bissl_fast::cpu

// The CPU kernels as PyTorch ops: tensors in, tensors out, through the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "cpu/contrastive.h"
#include "tensors.h"

namespace bissl_fast::cpu {
namespace {

using torch::stable::Tensor;

void check_kept(const Problem& problem, const Tensor& units, const Tensor& kept) {
  check_matches(units, kept);
  const bool valid = kept.numel() == kept_size(problem) &&
                     with_wide_type(kept, [&]<class T>(T) { return is_kept(problem, data<T>(kept)); });
  STD_TORCH_CHECK(valid, "kept must come from the forward pass of the same loss");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fwd(const Tensor& z1, const Tensor& z2, double temperature,
                                                       bool cross_view) {
  const Problem problem = problem_of(z1, z2, temperature, cross_view);
  const Tensor first = wide(z1), second = wide(z2);
  const auto loss = torch::stable::new_empty(first, {});
  const auto units = torch::stable::new_empty(first, {problem.rows(), problem.dim});
  const auto inv_norms = torch::stable::new_empty(first, {problem.rows()});
  const auto lse = torch::stable::new_empty(first, {problem.rows()});
  const auto kept = torch::stable::new_empty(first, {kept_size(problem)});
  with_wide_type(first, [&]<class T>(T) {
    normalise(problem, data<T>(first), data<T>(second), data<T>(units), data<T>(inv_norms));
    *data<T>(loss) = static_cast<T>(forward(problem, data<T>(units), data<T>(lse), data<T>(kept)));
  });
  return {loss, units, inv_norms, lse, kept};
}

std::tuple<Tensor, Tensor> bwd(const Tensor& units, const Tensor& inv_norms, const Tensor& lse, const Tensor& kept,
                               double temperature, bool cross_view) {
  const Problem problem = problem_of(units, temperature, cross_view);
  check_saved(units, {inv_norms, lse}, {});
  check_kept(problem, units, kept);
  const auto grad = torch::stable::empty_like(units);
  const auto radial = torch::stable::empty_like(lse);
  with_wide_type(units, [&]<class T>(T) {
    const Saved<T> saved{data<T>(units), data<T>(inv_norms), data<T>(kept)};
    backward(problem, saved, data<T>(grad), data<T>(radial));
  });
  return {grad, radial};
}

Tensor bwd_bwd(const Tensor& units, const Tensor& inv_norms, const Tensor& lse, const Tensor& kept,
               const Tensor& grad, const Tensor& radial, const Tensor& tangent, double temperature, bool cross_view) {
  const Problem problem = problem_of(units, temperature, cross_view);
  check_saved(units, {inv_norms, lse, radial}, {grad, tangent});
  check_kept(problem, units, kept);
  const auto product = torch::stable::empty_like(units);
  with_wide_type(units, [&]<class T>(T) {
    const Saved<T> saved{data<T>(units), data<T>(inv_norms), data<T>(kept)};
    backward_backward(problem, saved, data<T>(grad), data<T>(radial), data<T>(tangent), data<T>(product));
  });
  return product;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CPU, library) {
  library.impl("contrastive_fwd", TORCH_BOX(&fwd));
  library.impl("contrastive_bwd", TORCH_BOX(&bwd));
  library.impl("contrastive_bwd_bwd", TORCH_BOX(&bwd_bwd));
}

}  // namespace bissl_fast::cpu

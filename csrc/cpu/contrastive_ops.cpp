// The CPU kernels as PyTorch ops: tensors in, tensors out, through the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "cpu/contrastive.h"

namespace bissl_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

// Calls work<T>() with the dtype that sums are formed in.
template <class Work>
auto with_wide_type(const Tensor& tensor, const Work& work) {
  return is_double(tensor) ? work(double{}) : work(float{});
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

void check_settings(double temperature) { STD_TORCH_CHECK(temperature > 0, "temperature must be positive"); }

Tensor wide(const Tensor& z) {
  switch (z.scalar_type()) {
    case ScalarType::Double:
    case ScalarType::Float:
      return torch::stable::contiguous(z);
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return torch::stable::contiguous(torch::stable::to(z, ScalarType::Float));
    default:
      STD_TORCH_CHECK(false, "embeddings must be float16, bfloat16, float32 or float64");
  }
}

Problem problem_of(const Tensor& units, double temperature, bool cross_view) {
  check_settings(temperature);
  STD_TORCH_CHECK(units.dim() == 2 && units.size(0) % 2 == 0 && units.size(0) > 0, "units must have shape (2B, D)");
  return {units.size(0) / 2, units.size(1), temperature, cross_view};
}

// What the backward kernels take must come from the forward kernel: contiguous, one dtype, matching shapes.
void check_saved(const Tensor& units, const Tensor& saved, int64_t dim) {
  STD_TORCH_CHECK(saved.is_cpu() && saved.scalar_type() == units.scalar_type(), "saved tensors must match units");
  STD_TORCH_CHECK(saved.dim() == dim && saved.size(0) == units.size(0), "saved tensors must have a row per unit row");
  STD_TORCH_CHECK(dim == 1 || saved.size(1) == units.size(1), "saved tensors must have the units' columns");
  STD_TORCH_CHECK(units.is_contiguous() && saved.is_contiguous(), "saved tensors must be contiguous");
}

void check_kept(const Problem& problem, const Tensor& units, const Tensor& kept) {
  STD_TORCH_CHECK(kept.is_cpu() && kept.scalar_type() == units.scalar_type() && kept.is_contiguous(),
                  "saved tensors must match units");
  const bool valid = kept.numel() == kept_size(problem) &&
                     with_wide_type(kept, [&]<class T>(T) { return is_kept(problem, data<T>(kept)); });
  STD_TORCH_CHECK(valid, "kept must come from the forward pass of the same loss");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fwd(const Tensor& z1, const Tensor& z2, double temperature,
                                                       bool cross_view) {
  STD_TORCH_CHECK(z1.dim() == 2 && z2.dim() == 2 && z1.size(0) == z2.size(0) && z1.size(1) == z2.size(1),
                  "z1 and z2 must both have shape (B, D)");
  STD_TORCH_CHECK(z1.size(0) > 0 && z1.size(1) > 0, "z1 and z2 must not be empty");
  STD_TORCH_CHECK(z1.scalar_type() == z2.scalar_type(), "z1 and z2 must have one dtype");
  STD_TORCH_CHECK(z2.is_cpu(), "z1 and z2 must be on one device");
  check_settings(temperature);
  const Problem problem{z1.size(0), z1.size(1), temperature, cross_view};
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
  check_saved(units, inv_norms, 1);
  check_saved(units, lse, 1);
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
  for (const auto& saved : {inv_norms, lse, radial}) check_saved(units, saved, 1);
  for (const auto& saved : {grad, tangent}) check_saved(units, saved, 2);
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

// What every device's ops ask of their tensors, through the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>

#include "problem.h"

namespace bissl_fast {

inline bool is_double(const torch::stable::Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Double;
}

// Calls work(T{}) with the dtype that sums are formed in.
template <class Work>
auto with_wide_type(const torch::stable::Tensor& tensor, const Work& work) {
  return is_double(tensor) ? work(double{}) : work(float{});
}

template <class T>
T* data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Contiguous, in float64 or float32.
inline torch::stable::Tensor wide(const torch::stable::Tensor& z) {
  using torch::headeronly::ScalarType;
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

inline void check_one_device(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(),
                  "all tensors must be on one device");
}

// The problem of embeddings z1 and z2, both (B, D).
inline Problem problem_of(const torch::stable::Tensor& z1, const torch::stable::Tensor& z2, double temperature,
                          bool cross_view) {
  STD_TORCH_CHECK(z1.dim() == 2 && z2.dim() == 2 && z1.size(0) == z2.size(0) && z1.size(1) == z2.size(1),
                  "z1 and z2 must both have shape (B, D)");
  STD_TORCH_CHECK(z1.size(0) > 0 && z1.size(1) > 0, "z1 and z2 must not be empty");
  STD_TORCH_CHECK(z1.scalar_type() == z2.scalar_type(), "z1 and z2 must have one dtype");
  STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
  check_one_device(z1, z2);
  return {z1.size(0), z1.size(1), temperature, cross_view};
}

// The problem of unit rows (2B, D).
inline Problem problem_of(const torch::stable::Tensor& units, double temperature, bool cross_view) {
  STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
  STD_TORCH_CHECK(units.dim() == 2 && units.size(0) % 2 == 0 && units.size(0) > 0, "units must have shape (2B, D)");
  STD_TORCH_CHECK(is_double(units) || units.scalar_type() == torch::headeronly::ScalarType::Float,
                  "units must be float32 or float64");
  return {units.size(0) / 2, units.size(1), temperature, cross_view};
}

inline void check_matches(const torch::stable::Tensor& units, const torch::stable::Tensor& saved) {
  check_one_device(units, saved);
  STD_TORCH_CHECK(saved.scalar_type() == units.scalar_type(), "saved tensors must match units");
  STD_TORCH_CHECK(units.is_contiguous() && saved.is_contiguous(), "saved tensors must be contiguous");
}

// What the backward kernels take must come from the forward kernel: contiguous, one dtype, (N,) or (N, D).
inline void check_saved(const torch::stable::Tensor& units, std::initializer_list<torch::stable::Tensor> per_row,
                        std::initializer_list<torch::stable::Tensor> per_entry) {
  for (const auto& saved : per_row) {
    check_matches(units, saved);
    STD_TORCH_CHECK(saved.dim() == 1 && saved.size(0) == units.size(0), "saved tensors must have a row per unit row");
  }
  for (const auto& saved : per_entry) {
    check_matches(units, saved);
    STD_TORCH_CHECK(saved.dim() == 2 && saved.size(0) == units.size(0) && saved.size(1) == units.size(1),
                    "saved tensors must have the units' shape");
  }
}

}  // namespace bissl_fast

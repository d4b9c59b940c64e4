// Matrix products through torch's own: cuBLAS on a GPU, at the precision that PyTorch is set to.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <type_traits>

#include "cuda/contrastive.h"

namespace bissl_fast::cuda {

template <class T>
torch::stable::Tensor view(const Matrix<T>& matrix, const torch::stable::Device& device) {
  const std::array<int64_t, 2> sizes{matrix.rows, matrix.cols};
  const std::array<int64_t, 2> strides{matrix.transposed ? 1 : matrix.cols, matrix.transposed ? matrix.rows : 1};
  constexpr auto kType =
      std::is_same_v<T, double> ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
  return torch::stable::from_blob(matrix.data, sizes, strides, device, kType);
}

// out = a b. The variant with `out` is not among the ops that autocast runs in half precision.
template <class T>
void multiply(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b, const torch::stable::Device& device) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(view(a, device)), from(view(b, device)), from(view(out, device))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<torch::stable::Tensor>(stack[0]);  // takes the returned handle, and drops it
}

}  // namespace bissl_fast::cuda

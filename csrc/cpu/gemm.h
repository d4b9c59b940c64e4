// Matrix products through torch's own BLAS.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <type_traits>

namespace bissl_fast::cpu {

// A row-major matrix without gaps, or the transpose of one.
template <class T>
struct Matrix {
  T* data;
  int64_t rows, cols;
  bool transposed = false;

  Matrix transpose() const { return {data, cols, rows, !transposed}; }
  torch::stable::Tensor view() const {
    const std::array<int64_t, 2> sizes{rows, cols};
    const std::array<int64_t, 2> strides{transposed ? 1 : cols, transposed ? rows : 1};
    constexpr auto kType =
        std::is_same_v<T, double> ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
    return torch::stable::from_blob(data, sizes, strides, torch::stable::Device("cpu"), kType);
  }
};

// out = a b, or out += a b. Inside parallel_for the product runs on the calling thread.
template <class T>
void multiply(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b, bool accumulate = false) {
  const auto result = out.view();
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(result.get(), result.get(), a.view().get(), b.view().get(),
                                                         accumulate ? 1.0 : 0.0, 1.0));
}

}  // namespace bissl_fast::cpu

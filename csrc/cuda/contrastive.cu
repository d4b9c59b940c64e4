// The contrastive losses on a CUDA device, for what the Triton kernels leave: float64 and very wide rows. All
// arithmetic is in rows.h and contrastive.h, which a host test runs too; here indices are mapped to threads.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cuda/contrastive.h"
#include "cuda/product.h"
#include "cuda/stream.h"
#include "tensors.h"

namespace bissl_fast::cuda {

template <class Body>
__global__ void at_each_index(int64_t count, Body body) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) body(index);
}

// Runs loops as kernels on the device and the current stream of a tensor.
class Engine {
 public:
  explicit Engine(const torch::stable::Tensor& like)
      : like_(like),
        device_(torch::headeronly::DeviceType::CUDA, like.get_device_index()),
        guard_(like.get_device_index()),
        stream_(current_stream(like.get_device_index())) {
    check(cudaSetDevice(like.get_device_index()));  // the guard set it in PyTorch's CUDA runtime, this one is ours
  }

  template <class Body>
  void each(int64_t count, const Body& body) {
    constexpr int64_t kThreads = 256;
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    if (blocks == 0) return;
    STD_TORCH_CHECK(blocks <= INT32_MAX, "the embeddings have too many entries for one kernel");
    at_each_index<<<static_cast<unsigned>(blocks), kThreads, 0, stream_>>>(count, body);
    check(cudaGetLastError());
  }

  template <class T>
  void multiply(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b) {
    cuda::multiply(out, a, b, device_);
  }

  template <class T>
  T* scratch(int64_t count) {
    const auto bytes = static_cast<int64_t>(sizeof(T)) * count;
    scratch_.push_back(torch::stable::new_empty(like_, {bytes}, torch::headeronly::ScalarType::Byte));
    return data<T>(scratch_.back());
  }

 private:
  torch::stable::Tensor like_;
  torch::stable::Device device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  std::vector<torch::stable::Tensor> scratch_;
};

using torch::stable::Tensor;

void check_kept(const Problem& problem, const Tensor& units, const Tensor& kept) {
  check_matches(units, kept);
  STD_TORCH_CHECK(kept.numel() == kept_size(problem), "kept must come from the forward pass of the same loss");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fwd(const Tensor& z1, const Tensor& z2, double temperature,
                                                       bool cross_view) {
  const Problem problem = problem_of(z1, z2, temperature, cross_view);
  Engine engine(z1);
  const Tensor first = wide(z1), second = wide(z2);
  const auto loss = torch::stable::new_empty(first, {});
  const auto units = torch::stable::new_empty(first, {problem.rows(), problem.dim});
  const auto inv_norms = torch::stable::new_empty(first, {problem.rows()});
  const auto lse = torch::stable::new_empty(first, {problem.rows()});
  const auto kept = torch::stable::new_empty(first, {kept_size(problem)});
  with_wide_type(first, [&]<class T>(T) {
    normalise<T>(engine, problem, data<T>(first), data<T>(second), data<T>(units), data<T>(inv_norms));
    forward<T>(engine, problem, data<T>(units), data<T>(loss), data<T>(lse), data<T>(kept));
  });
  return {loss, units, inv_norms, lse, kept};
}

std::tuple<Tensor, Tensor> bwd(const Tensor& units, const Tensor& inv_norms, const Tensor& lse, const Tensor& kept,
                               double temperature, bool cross_view) {
  const Problem problem = problem_of(units, temperature, cross_view);
  check_saved(units, {inv_norms, lse}, {});
  check_kept(problem, units, kept);
  Engine engine(units);
  const auto grad = torch::stable::empty_like(units);
  const auto radial = torch::stable::empty_like(lse);
  with_wide_type(units, [&]<class T>(T) {
    const Saved<T> saved{data<T>(units), data<T>(inv_norms), data<T>(kept)};
    backward<T>(engine, problem, saved, data<T>(grad), data<T>(radial));
  });
  return {grad, radial};
}

Tensor bwd_bwd(const Tensor& units, const Tensor& inv_norms, const Tensor& lse, const Tensor& kept,
               const Tensor& grad, const Tensor& radial, const Tensor& tangent, double temperature, bool cross_view) {
  const Problem problem = problem_of(units, temperature, cross_view);
  check_saved(units, {inv_norms, lse, radial}, {grad, tangent});
  check_kept(problem, units, kept);
  Engine engine(units);
  const auto product = torch::stable::empty_like(units);
  with_wide_type(units, [&]<class T>(T) {
    const Saved<T> saved{data<T>(units), data<T>(inv_norms), data<T>(kept)};
    backward_backward<T>(engine, problem, saved, data<T>(grad), data<T>(radial), data<T>(tangent), data<T>(product));
  });
  return product;
}

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CUDA, library) {
  library.impl("contrastive_fwd", TORCH_BOX(&fwd));
  library.impl("contrastive_bwd", TORCH_BOX(&bwd));
  library.impl("contrastive_bwd_bwd", TORCH_BOX(&bwd_bwd));
}

}  // namespace bissl_fast::cuda

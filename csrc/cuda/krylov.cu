// Conjugate gradients' vector work and LARS on a CUDA device. All arithmetic is in krylov.h and lars.h, which host tests
// run too; here indices are mapped to blocks. No atomics, no waiting, nothing copied to the device: a graph can capture
// every call.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/krylov.h"
#include "cuda/lars.h"
#include "cuda/stream.h"
#include "vectors.h"

namespace bissl_fast::cuda {

struct BlockTeam {
  double* shared;

  template <class Work>
  HOST_DEVICE void lanes([[maybe_unused]] const Work& work) const {
#ifdef __CUDA_ARCH__
    work(static_cast<int>(threadIdx.x));
    __syncthreads();
#endif
  }
  HOST_DEVICE double* sums(int which) const { return shared + which * kTeam; }
};

template <class Body>
__global__ void __launch_bounds__(kTeam) in_teams(const __grid_constant__ Body body) {
  __shared__ double shared[kTeamSums * kTeam];
  body(BlockTeam{shared}, static_cast<int64_t>(blockIdx.x));
}

// Runs teams as blocks on the device and the current stream of a tensor.
class BlockEngine {
 public:
  explicit BlockEngine(const torch::stable::Tensor& like)
      : like_(like), guard_(like.get_device_index()), stream_(current_stream(like.get_device_index())) {
    check(cudaSetDevice(like.get_device_index()));  // the guard set it in PyTorch's CUDA runtime, this one is ours
  }

  template <class Body>
  void teams(int64_t count, const Body& body) {
    if (count == 0) return;
    STD_TORCH_CHECK(count <= INT32_MAX, "the vectors have too many entries for one kernel");
    in_teams<<<static_cast<unsigned>(count), kTeam, 0, stream_>>>(body);
    check(cudaGetLastError());
  }

  template <class T>
  T* scratch(int64_t count) {
    const auto bytes = static_cast<int64_t>(sizeof(T)) * count;
    scratch_.push_back(torch::stable::new_empty(like_, {bytes}, torch::headeronly::ScalarType::Byte));
    return data<T>(scratch_.back());
  }

 private:
  torch::stable::Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  std::vector<torch::stable::Tensor> scratch_;
};

using torch::stable::Tensor;

Tensor segment_dots_op(const Tensor& a, const Tensor& b, const std::vector<int64_t>& lengths) {
  const auto offsets = checked_offsets(lengths, {a, b});
  BlockEngine engine(a);
  const auto dots = torch::stable::new_empty(a, {static_cast<int64_t>(lengths.size())});
  with_wide_type(a, [&]<class T>(T) {
    segment_dots<T>(engine, {offsets.data(), dots.numel()}, data<const T>(a), data<const T>(b), data<T>(dots));
  });
  return dots;
}

std::tuple<Tensor, Tensor, Tensor> cg_update_op(const Tensor& x, const Tensor& r, const Tensor& d, const Tensor& q,
                                                const Tensor& rz, const std::vector<int64_t>& lengths,
                                                const std::optional<Tensor>& inverse_diagonal) {
  const auto offsets = checked_cg(lengths, {x, r, d}, q, rz, inverse_diagonal);
  BlockEngine engine(x);
  const auto curvature = torch::stable::empty_like(rz), rz_next = torch::stable::empty_like(rz);
  const auto rr_next = torch::stable::empty_like(rz);
  with_wide_type(x, [&]<class T>(T) {
    const T* scale = inverse_diagonal ? data<const T>(*inverse_diagonal) : nullptr;
    const Update<T> update{{},          data<T>(x),         data<T>(r),       data<T>(d),       data<const T>(q), scale,
                           data<T>(rz), data<T>(curvature), data<T>(rz_next), data<T>(rr_next), nullptr,          nullptr,
                           nullptr};
    cg_update<T>(engine, {offsets.data(), rz.numel()}, update);
  });
  return {curvature, rz_next, rr_next};
}

void lars_step_op(const Tensors& weights, const Tensors& momenta, const Tensors& gradients, bool exclude_1d, double lr,
                  double weight_decay, double momentum, double trust) {
  const auto offsets = checked_step(weights, momenta, gradients);
  BlockEngine engine(weights[0]);
  with_wide_type(weights[0], [&]<class T>(T) {
    std::vector<LarsTensor<T>> tensors;
    for (size_t k = 0; k < weights.size(); ++k) {
      const bool adapted = weights[k].dim() != 1 || !exclude_1d;
      tensors.push_back({data<T>(weights[k]), data<T>(momenta[k]), data<const T>(gradients[k]), adapted});
    }
    lars_step<T>(engine, {offsets.data(), static_cast<int64_t>(tensors.size())}, tensors.data(),
                 {lr, weight_decay, momentum, trust});
  });
}

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CUDA, library) {
  library.impl("segment_dots", TORCH_BOX(&segment_dots_op));
  library.impl("cg_update", TORCH_BOX(&cg_update_op));
  library.impl("lars_step", TORCH_BOX(&lars_step_op));
}

}  // namespace bissl_fast::cuda

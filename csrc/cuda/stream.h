// Where kernels are launched: PyTorch's current stream.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace bissl_fast::cuda {

// The shim lives in libtorch_cuda, which is looked up and not linked: the same binary then serves a PyTorch without
// CUDA.
inline cudaStream_t current_stream(int32_t device) {
  using Shim = int32_t (*)(int32_t, void**);
  static const auto shim = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Shim>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(shim != nullptr, "PyTorch's CUDA library offers no current stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(shim(device, &stream) == 0, "PyTorch's current CUDA stream was refused");
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "a kernel was not launched: ", cudaGetErrorString(error));
}

}  // namespace bissl_fast::cuda

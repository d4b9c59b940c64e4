// The module bissl_fast._C. Importing it declares the ops, and it tells how it was built; nothing else is called
// through pybind11, so that torch.compile sees ops only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <string>

#include "bissl_fast_build_info.h"

STABLE_TORCH_LIBRARY(bissl_fast, library) {
  library.def(
      "contrastive_fwd(Tensor z1, Tensor z2, float temperature, bool cross_view)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "contrastive_bwd(Tensor units, Tensor inv_norms, Tensor lse, Tensor kept, float temperature, bool cross_view)"
      " -> (Tensor, Tensor)");
  library.def(
      "contrastive_bwd_bwd(Tensor units, Tensor inv_norms, Tensor lse, Tensor kept, Tensor grad, Tensor radial,"
      " Tensor tangent, float temperature, bool cross_view) -> Tensor");
  library.def("segment_dots(Tensor a, Tensor b, int[] segments) -> Tensor");
  library.def(
      "cg_update(Tensor(a!) x, Tensor(b!) r, Tensor(c!) d, Tensor q, Tensor rz, int[] segments,"
      " Tensor? inverse_diagonal=None) -> (Tensor, Tensor, Tensor)");
  library.def(
      "lars_step(Tensor(a!)[] weights, Tensor(b!)[] momenta, Tensor[] gradients, bool exclude_1d, float lr,"
      " float weight_decay, float momentum, float trust_coefficient) -> ()");
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::map<std::string, std::string> build_info() {
  return {
      {"compiler", compiler()},
      {"flags", BISSL_FAST_FLAGS},
      {"cuda_architectures", BISSL_FAST_CUDA_ARCHITECTURES},
      {"torch_headers", BISSL_FAST_TORCH_HEADERS},
      {"oldest_torch", BISSL_FAST_OLDEST_TORCH},
  };
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of bissl-fast. Importing this module declares them under torch.ops.bissl_fast.";
  module.def("build_info", &build_info, "How the native code was built: compiler, flags, CUDA architectures.");
}

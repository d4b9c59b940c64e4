// The module bissl_fast._C. Importing it declares the ops, and it tells how it was built; nothing else is called
// through pybind11, so that torch.compile sees ops only.
//
// pybind11 speaks CPython's ABI, which is the same whatever torch's is: torch 2.11 ships a copy of its headers that refuses
// a file with TORCH_TARGET_VERSION set, so it is unset while they are read.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")
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
  library.def("batch_norm_statistics(Tensor x, int groups) -> Tensor");
  library.def(
      "batch_norm_fwd(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int groups, bool relu, float eps,"
      " Tensor? every=None) -> (Tensor, Tensor, Tensor)");
  library.def(
      "batch_norm_apply(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor mean, Tensor rstd, int groups,"
      " bool relu) -> Tensor");
  library.def(
      "batch_norm_moments(Tensor v, Tensor x, Tensor out, Tensor mean, Tensor rstd, int groups, bool relu) -> Tensor");
  library.def(
      "batch_norm_bwd(Tensor grad_out, Tensor x, Tensor out, Tensor weight, Tensor mean, Tensor rstd, int groups,"
      " bool relu, bool with_residual) -> (Tensor, Tensor, Tensor)");
  library.def(
      "batch_norm_bwd_apply(Tensor grad_out, Tensor x, Tensor out, Tensor weight, Tensor mean, Tensor rstd,"
      " Tensor sums, int groups, bool relu, bool with_residual, int ranks=1) -> (Tensor, Tensor)");
  library.def(
      "batch_norm_jvp(Tensor? x_t, Tensor x, Tensor out, Tensor weight, Tensor mean, Tensor rstd, Tensor? weight_t,"
      " Tensor? bias_t, Tensor? residual_t, int groups, bool relu, Tensor? moments=None, int ranks=1) -> Tensor");
  library.def(
      "batch_norm_tangent_moments(Tensor? grad_out_t, Tensor? x_t, Tensor grad_out, Tensor x, Tensor out, Tensor mean,"
      " Tensor rstd, int groups, bool relu) -> Tensor");
  library.def(
      "batch_norm_bwd_jvp(Tensor? grad_out_t, Tensor? x_t, Tensor? weight_t, Tensor grad_out, Tensor x, Tensor out,"
      " Tensor weight, Tensor mean, Tensor rstd, Tensor sums, int groups, bool relu, bool with_residual,"
      " Tensor? own_sums=None, Tensor? moments=None, Tensor? own_moments=None, int ranks=1)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "draw_views(Tensor samples, Tensor sizes, Tensor recipe, int seed, int epoch, int view) -> (Tensor, Tensor)");
  library.def(
      "render_views(Tensor images, Tensor samples, Tensor integers, Tensor numbers, Tensor channels, int size,"
      " bool cubic, bool box_blur, float threshold, bool bfloat16) -> Tensor");
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

// Views on the CPU as a PyTorch op: tensors in, tensor out, through the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <array>

#include "augment_arguments.h"
#include "cpu/augment.h"

namespace bissl_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor render_views_op(const Tensor& images, const Tensor& samples, const Tensor& integers, const Tensor& numbers,
                       const Tensor& channels, int64_t size, bool cubic, double threshold, bool bfloat16) {
  const ImageArray array = images_of(images);
  const ViewRecipe recipe = recipe_of(size, cubic, threshold, channels);
  STD_TORCH_CHECK(samples.dim() == 1 && samples.scalar_type() == ScalarType::Long && samples.is_contiguous() &&
                      !samples.is_cuda(),
                  "samples must be contiguous int64 on the host");
  const int64_t n = samples.size(0);
  check_table(integers, n, kViewIntegers, ScalarType::Int);
  check_table(numbers, n, kViewNumbers, ScalarType::Float);
  const auto* rows = data<const ViewIntegers>(integers);
  const auto* factors = data<const ViewNumbers>(numbers);
  check_rows(array, data<const int64_t>(samples), rows, factors, n);
  const std::array<int64_t, 4> shape{n, kChannels, size, size};
  const Tensor out = torch::stable::empty(shape, bfloat16 ? ScalarType::BFloat16 : ScalarType::Float, std::nullopt,
                                          images.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (bfloat16) {
    render_views(array, data<const int64_t>(samples), rows, factors, n, recipe, data<uint16_t>(out));
  } else {
    render_views(array, data<const int64_t>(samples), rows, factors, n, recipe, data<float>(out));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CPU, library) { library.impl("render_views", TORCH_BOX(&render_views_op)); }

}  // namespace bissl_fast::cpu

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
                       const Tensor& channels, int64_t size, bool cubic, bool box_blur, double threshold, bool bfloat16) {
  const ImageArray array = images_of(images);
  const ViewRecipe recipe = recipe_of(size, cubic, box_blur, threshold, channels);
  const ViewTable table = table_of(samples, integers, numbers);
  check_rows(array, table);
  const std::array<int64_t, 4> shape{table.n, kChannels, size, size};
  const Tensor out = torch::stable::empty(shape, bfloat16 ? ScalarType::BFloat16 : ScalarType::Float, std::nullopt,
                                          images.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (bfloat16) {
    render_views(array, table.samples, table.integers, table.numbers, table.n, recipe, data<BFloat16>(out));
  } else {
    render_views(array, table.samples, table.integers, table.numbers, table.n, recipe, data<float>(out));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CPU, library) { library.impl("render_views", TORCH_BOX(&render_views_op)); }

}  // namespace bissl_fast::cpu

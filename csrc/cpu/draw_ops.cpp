// Drawing view parameters as a PyTorch op, over PyTorch's threads: tensors in, tensors out, through the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <tuple>

#include "draw.h"
#include "tensors.h"

namespace bissl_fast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRowsPerThread = 1024;  // 0.1 ms: less than that is not worth waking another thread
constexpr int64_t kLargestSide = int64_t{1} << 30;

void check_host(const Tensor& tensor, ScalarType dtype, const char* expected) {
  STD_TORCH_CHECK(!tensor.is_cuda() && tensor.is_contiguous() && tensor.scalar_type() == dtype, expected);
}

std::tuple<Tensor, Tensor> draw_views_op(const Tensor& samples, const Tensor& sizes, const Tensor& recipe, int64_t seed,
                                         int64_t epoch, int64_t view) {
  check_host(samples, ScalarType::Long, "samples must be contiguous int64 (N,) on the host");
  check_host(sizes, ScalarType::Long, "sizes must be contiguous int64 (1, 2) or (N, 2) on the host");
  check_host(recipe, ScalarType::Double, "the recipe must be contiguous float64 on the host");
  const int64_t n = samples.numel();
  STD_TORCH_CHECK(samples.dim() == 1, "samples must have shape (N,)");
  STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(1) == 2 && (sizes.size(0) == 1 || sizes.size(0) == n),
                  "sizes must have shape (1, 2) or (N, 2)");
  STD_TORCH_CHECK(recipe.numel() == kDrawNumbers, "the recipe must have ", kDrawNumbers, " numbers");
  STD_TORCH_CHECK(epoch >= 0 && epoch <= UINT32_MAX && view >= 0 && view <= UINT16_MAX,
                  "epoch and view must be integers of 32 and 16 bits");
  const auto* items = data<const int64_t>(samples);
  const auto* sides = data<const int64_t>(sizes);
  for (int64_t k = 0; k < n; ++k) {
    STD_TORCH_CHECK(items[k] >= 0 && items[k] <= UINT32_MAX, "sample ", items[k], " has more than 32 bits");
  }
  for (int64_t k = 0; k < sizes.numel(); ++k) {
    STD_TORCH_CHECK(sides[k] > 0 && sides[k] <= kLargestSide, "images must have 1 to 2^30 pixels a side");
  }
  const Tensor integers = torch::stable::empty(std::array<int64_t, 2>{n, kViewIntegers}, ScalarType::Int);
  const Tensor numbers = torch::stable::empty(std::array<int64_t, 2>{n, kViewNumbers}, ScalarType::Float);
  const auto& drawn_by = *data<const DrawRecipe>(recipe);
  const DrawCounter counter{static_cast<uint64_t>(seed), static_cast<uint32_t>(view), static_cast<uint32_t>(epoch)};
  auto* to_integers = data<ViewIntegers>(integers);
  auto* to_numbers = data<ViewNumbers>(numbers);
  const int64_t stride = sizes.size(0) == 1 ? 0 : 2;
  torch::stable::parallel_for(0, n, kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t* side = sides + k * stride;
      const auto item = static_cast<uint32_t>(items[k]);
      draw_row(drawn_by, counter, item, side[0], side[1], to_integers[k], to_numbers[k]);
    }
  });
  return {integers, numbers};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CPU, library) { library.impl("draw_views", TORCH_BOX(&draw_views_op)); }

}  // namespace bissl_fast::cpu

// What every device's op of views asks of its tensors, through the stable ABI.
#pragma once

#include <cstdint>

#include "tensors.h"
#include "views.h"

namespace bissl_fast {

// The samples of n views and the two halves of their table: all on the host, or all on one device.
struct ViewTable {
  const int64_t* samples;
  const ViewIntegers* integers;
  const ViewNumbers* numbers;
  int64_t n;
  bool on_host;
};

inline ViewTable table_of(const torch::stable::Tensor& samples, const torch::stable::Tensor& integers,
                          const torch::stable::Tensor& numbers) {
  using torch::headeronly::ScalarType;
  const bool on_host = !samples.is_cuda();
  STD_TORCH_CHECK(samples.dim() == 1 && samples.scalar_type() == ScalarType::Long && samples.is_contiguous(),
                  "samples must be contiguous int64 (N,)");
  const int64_t n = samples.size(0);
  const auto check = [&](const torch::stable::Tensor& tensor, int64_t columns, ScalarType dtype) {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == n && tensor.size(1) == columns &&
                        tensor.scalar_type() == dtype && tensor.is_contiguous(),
                    "integers and numbers must be contiguous tables, int32 (N, ", kViewIntegers, ") and float32 (N, ",
                    kViewNumbers, ")");
    STD_TORCH_CHECK(tensor.is_cuda() == !on_host && tensor.get_device_index() == samples.get_device_index(),
                    "samples, integers and numbers must all be on the host or all on one device");
  };
  check(integers, kViewIntegers, ScalarType::Int);
  check(numbers, kViewNumbers, ScalarType::Float);
  return {data<const int64_t>(samples), data<const ViewIntegers>(integers), data<const ViewNumbers>(numbers), n, on_host};
}

inline ImageArray images_of(const torch::stable::Tensor& images) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == kChannels && images.scalar_type() == ScalarType::Byte &&
                      images.is_contiguous(),
                  "images must be contiguous (M, H, W, 3) uint8");
  return {data<const uint8_t>(images), images.size(0), images.size(1), images.size(2)};
}

inline ViewRecipe recipe_of(int64_t size, bool cubic, bool box_blur, double threshold,
                             const torch::stable::Tensor& channels) {
  STD_TORCH_CHECK(size > 0 && size < (1 << 15), "the size of a view must be between 1 and 32767 pixels");
  STD_TORCH_CHECK(channels.dim() == 2 && channels.size(0) == 2 && channels.size(1) == kChannels &&
                      channels.scalar_type() == torch::headeronly::ScalarType::Float && channels.is_contiguous() &&
                      !channels.is_cuda(),
                  "channels must be (2, 3) float32 on the host: scale and shift");
  ViewRecipe recipe{size, cubic, static_cast<float>(threshold), {}, {}, box_blur};
  for (int k = 0; k < kChannels; ++k) {
    recipe.scale[k] = data<const float>(channels)[k];
    recipe.shift[k] = data<const float>(channels)[kChannels + k];
  }
  return recipe;
}

// A row that a kernel may take at its word.
inline void check_row(const ImageArray& images, int64_t sample, const ViewIntegers& row, const ViewNumbers& numbers) {
  STD_TORCH_CHECK(is_sample(images, sample), "sample ", sample, " is not one of ", images.count, " images");
  STD_TORCH_CHECK(is_within(images, row), "a crop leaves the images of ", images.height, " x ", images.width, " pixels");
  STD_TORCH_CHECK(is_order(row), "order must hold each of the four colour operations once");
  STD_TORCH_CHECK(is_sigma(numbers.sigma), "sigma must be 0 or more, and finite");
}

inline void check_rows(const ImageArray& images, const ViewTable& table) {
  for (int64_t k = 0; k < table.n; ++k) check_row(images, table.samples[k], table.integers[k], table.numbers[k]);
}

}  // namespace bissl_fast

// What every device's op of views asks of its tensors, through the stable ABI.
#pragma once

#include <cstdint>

#include "tensors.h"
#include "views.h"

namespace bissl_fast {

inline void check_table(const torch::stable::Tensor& tensor, int64_t rows, int64_t columns,
                        torch::headeronly::ScalarType dtype) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns &&
                      tensor.scalar_type() == dtype && tensor.is_contiguous() && !tensor.is_cuda(),
                  "integers and numbers must be contiguous tables on the host, int32 (N, ", kViewIntegers,
                  ") and float32 (N, ", kViewNumbers, ")");
}

inline ImageArray images_of(const torch::stable::Tensor& images) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == kChannels && images.scalar_type() == ScalarType::Byte &&
                      images.is_contiguous(),
                  "images must be contiguous (M, H, W, 3) uint8");
  return {data<const uint8_t>(images), images.size(0), images.size(1), images.size(2)};
}

inline ViewRecipe recipe_of(int64_t size, bool cubic, double threshold, const torch::stable::Tensor& channels) {
  STD_TORCH_CHECK(size > 0 && size < (1 << 15), "the size of a view must be between 1 and 32767 pixels");
  STD_TORCH_CHECK(channels.dim() == 2 && channels.size(0) == 2 && channels.size(1) == kChannels &&
                      channels.scalar_type() == torch::headeronly::ScalarType::Float && channels.is_contiguous() &&
                      !channels.is_cuda(),
                  "channels must be (2, 3) float32 on the host: scale and shift");
  ViewRecipe recipe{size, cubic, static_cast<float>(threshold), {}, {}};
  for (int k = 0; k < kChannels; ++k) {
    recipe.scale[k] = data<const float>(channels)[k];
    recipe.shift[k] = data<const float>(channels)[kChannels + k];
  }
  return recipe;
}

// A row that a kernel may take at its word.
inline void check_row(const ImageArray& images, int64_t sample, const ViewIntegers& row, const ViewNumbers& numbers) {
  STD_TORCH_CHECK(sample >= 0 && sample < images.count, "sample ", sample, " is not one of ", images.count, " images");
  const int64_t bottom = int64_t{row.top} + row.height, right = int64_t{row.left} + row.width;
  STD_TORCH_CHECK(row.top >= 0 && row.left >= 0 && row.height > 0 && row.width > 0 && bottom <= images.height &&
                      right <= images.width,
                  "a crop leaves the images of ", images.height, " x ", images.width, " pixels");
  int seen = 0;
  for (const int32_t colour : row.order) seen |= colour >= 0 && colour < kColours ? 1 << colour : 0;
  STD_TORCH_CHECK(seen == (1 << kColours) - 1, "order must hold each of the four colour operations once");
  STD_TORCH_CHECK(numbers.sigma >= 0 && numbers.sigma < 1e6f, "sigma must be 0 or more, and finite");
}

inline void check_rows(const ImageArray& images, const int64_t* samples, const ViewIntegers* integers,
                       const ViewNumbers* numbers, int64_t n) {
  for (int64_t k = 0; k < n; ++k) check_row(images, samples[k], integers[k], numbers[k]);
}

}  // namespace bissl_fast

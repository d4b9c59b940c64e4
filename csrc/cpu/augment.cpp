#include "cpu/augment.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cpu/view_math.h"
#include "filters.h"

namespace bissl_fast::cpu {
namespace {

// What a thread writes between image and view. A view's three planes stay in the core's second-level cache.
class Workspace {
 public:
  explicit Workspace(int64_t size)
      : size_(size), values_(kChannels * size * size), scratch_(size * (size + 3)), first_(size) {}

  Planes planes() {
    const int64_t count = size_ * size_;
    return {values_.data(), values_.data() + count, values_.data() + 2 * count, count};
  }

  // Both axes: an output row is a weighted sum of the crop's rows, whose pixels are then gathered.
  void crop_resize_flip(const uint8_t* image, int64_t image_width, const ViewIntegers& row, bool cubic) {
    const auto size = static_cast<int32_t>(size_);
    const ResizeAxis down{row.height, size, cubic, false}, across{row.width, size, cubic, row.flip != 0};
    column_weights_.resize(down.taps);
    row_weights_.resize(across.taps * size_);
    line_.resize(kChannels * row.width);
    for (int32_t k = 0; k < size; ++k) {
      first_[k] = kChannels * resize_taps(across, k, 1.0f, [&](int32_t t, float weight) {
        row_weights_[t * size_ + k] = weight;
      });
    }
    const int64_t stride = kChannels * image_width;
    for (int32_t i = 0; i < size; ++i) {
      const int32_t first = resize_taps(down, i, 1.0f / 255, [&](int32_t t, float weight) { column_weights_[t] = weight; });
      weigh_rows(image + (row.top + first) * stride + kChannels * row.left, stride, column_weights_.data(), down.taps,
                 kChannels * row.width, line_.data());
      for (int channel = 0; channel < kChannels; ++channel) {
        gather_row(line_.data() + channel, first_.data(), row_weights_.data(), across.taps, size_,
                   values_.data() + (channel * size_ + i) * size_);
      }
    }
  }

  void blur_planes(const BlurAxis& axis, int planes) {
    kernel_.resize(axis.radius + 1);
    blur_taps(axis, [&](int32_t k, float weight) { kernel_[k] = weight; });
    for (int plane = 0; plane < planes; ++plane) {
      blur(values_.data() + plane * size_ * size_, size_, axis, kernel_.data(), scratch_.data());
    }
  }

 private:
  int64_t size_;
  std::vector<float> values_, scratch_, line_, column_weights_, row_weights_, kernel_;
  std::vector<int32_t> first_;
};

void adjust(const Planes& x, int32_t colour, float factor) {
  if (factor == neutral_factor(colour)) return;
  switch (colour) {
    case kBrightness:
      return brighten(x, factor);
    case kContrast:
      return blend_with(x, factor, (1 - factor) * static_cast<float>(luma_sum(x) / static_cast<double>(x.count)));
    case kSaturation:
      return saturate(x, factor);
    case kHue:
      return shift_hue(x, factor);
  }
}

}  // namespace

template <class T>
void render_views(const ImageArray& images, const int64_t* samples, const ViewIntegers* integers,
                  const ViewNumbers* numbers, int64_t n, const ViewRecipe& recipe, T* out) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace(recipe.size);
    for (int64_t k = begin; k < end; ++k) {
      const ViewIntegers& row = integers[k];
      const uint8_t* image = images.pixels + samples[k] * images.height * images.width * kChannels;
      workspace.crop_resize_flip(image, images.width, row, recipe.cubic);
      Planes planes = workspace.planes();
      for (const int32_t colour : row.order) adjust(planes, colour, numbers[k].factors[colour]);
      if (row.gray) {  // one plane from here on, read as three
        to_gray(planes);
        planes.green = planes.blue = planes.red;
      }
      if (const float sigma = numbers[k].sigma; sigma > 0) {
        workspace.blur_planes({sigma, recipe.size, recipe.box_blur}, row.gray ? 1 : kChannels);
      }
      finish(planes, row.solarize != 0, recipe, out + k * kChannels * planes.count);
    }
  });
}

template void render_views(const ImageArray&, const int64_t*, const ViewIntegers*, const ViewNumbers*, int64_t,
                           const ViewRecipe&, float*);
template void render_views(const ImageArray&, const int64_t*, const ViewIntegers*, const ViewNumbers*, int64_t,
                           const ViewRecipe&, BFloat16*);

}  // namespace bissl_fast::cpu

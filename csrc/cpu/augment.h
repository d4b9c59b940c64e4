// Views of images on the CPU: crop, resize, flip, colours, blur, solarise and normalise, one image after the other.
#pragma once

#include <cstdint>

#include "storage.h"
#include "views.h"

namespace bissl_fast::cpu {

// The n views of images[samples[k]] by the rows of the table, interleaved (n, S, S, 3), over PyTorch's threads. T is
// float or BFloat16. Boxes lie within the images.
template <class T>
void render_views(const ImageArray& images, const int64_t* samples, const ViewIntegers* integers,
                  const ViewNumbers* numbers, int64_t n, const ViewRecipe& recipe, T* out);

}  // namespace bissl_fast::cpu

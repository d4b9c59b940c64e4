// What every device's ops on flat vectors and on lists of tensors ask of them, through the stable ABI.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "tensors.h"

namespace bissl_fast {

using Tensors = std::vector<torch::stable::Tensor>;

// The first entry of every segment, and the end of the last one.
inline std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) {
    STD_TORCH_CHECK(length >= 0, "segments must not have negative lengths, found ", length);
    offsets.push_back(offsets.back() + length);
  }
  return offsets;
}

inline void check_floating(const torch::stable::Tensor& tensor) {
  STD_TORCH_CHECK(is_double(tensor) || tensor.scalar_type() == torch::headeronly::ScalarType::Float,
                  "vectors must be float32 or float64");
}

inline void check_like(const torch::stable::Tensor& first, const torch::stable::Tensor& tensor) {
  check_one_device(first, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == first.scalar_type(), "all vectors must have one dtype");
}

// `length` entries without gaps, in the first one's dtype and on its device.
inline void check_vector(const torch::stable::Tensor& first, const torch::stable::Tensor& vector, int64_t length) {
  check_like(first, vector);
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == length && vector.is_contiguous(),
                  "vectors must be contiguous, with one entry per entry of a segment or one per segment");
}

// What a kernel writes must not lie where it writes or reads something else: entries are done in no order.
inline void check_apart(const Tensors& written, const Tensors& read) {
  struct Range {
    const char *begin, *end;
    bool is_written;
  };
  std::vector<Range> ranges;
  const auto add = [&](const torch::stable::Tensor& tensor, bool is_written) {
    const char* begin = data<const char>(tensor);
    if (tensor.numel() > 0) ranges.push_back({begin, begin + tensor.numel() * tensor.element_size(), is_written});
  };
  for (const auto& tensor : written) add(tensor, true);
  for (const auto& tensor : read) add(tensor, false);
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const char *end_of_any = nullptr, *end_of_written = nullptr;
  for (const Range& range : ranges) {
    STD_TORCH_CHECK(range.begin >= (range.is_written ? end_of_any : end_of_written),
                    "what is updated in place must share no memory with another argument");
    end_of_any = std::max(end_of_any, range.end);
    if (range.is_written) end_of_written = std::max(end_of_written, range.end);
  }
}

// The axes of a tensor that is dense in some order of them, innermost first: (stride, size).
inline std::vector<std::pair<int64_t, int64_t>> dense_axes(const torch::stable::Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (int64_t k = 0; k < tensor.dim(); ++k) {
    if (tensor.size(k) != 1) axes.emplace_back(tensor.stride(k), tensor.size(k));
  }
  if (tensor.numel() == 0) return axes;
  auto sorted = axes;
  std::sort(sorted.begin(), sorted.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : sorted) {
    STD_TORCH_CHECK(stride == expected, "tensors of a step must be dense");
    expected *= size;
  }
  return axes;
}

// The offsets of segments that tile each of some vectors.
inline std::vector<int64_t> checked_offsets(const std::vector<int64_t>& lengths, const Tensors& vectors) {
  const auto offsets = offsets_of(lengths);
  check_floating(vectors[0]);
  for (const auto& vector : vectors) check_vector(vectors[0], vector, offsets.back());
  return offsets;
}

// The offsets of an update of x, r and d.
inline std::vector<int64_t> checked_cg(const std::vector<int64_t>& lengths, const Tensors& updated,
                                       const torch::stable::Tensor& q, const torch::stable::Tensor& rz,
                                       const std::optional<torch::stable::Tensor>& inverse_diagonal) {
  Tensors read{q};
  if (inverse_diagonal) read.push_back(*inverse_diagonal);
  Tensors vectors = updated;
  vectors.insert(vectors.end(), read.begin(), read.end());
  const auto offsets = checked_offsets(lengths, vectors);
  check_vector(q, rz, static_cast<int64_t>(lengths.size()));
  read.push_back(rz);
  check_apart(updated, read);
  return offsets;
}

// The offsets of the tensors of a step, as if they lay one after the other.
inline std::vector<int64_t> checked_step(const Tensors& weights, const Tensors& momenta, const Tensors& gradients) {
  STD_TORCH_CHECK(momenta.size() == weights.size() && gradients.size() == weights.size(),
                  "a step needs a momentum and a gradient for every tensor");
  check_floating(weights[0]);
  std::vector<int64_t> lengths;
  Tensors updated = weights;
  updated.insert(updated.end(), momenta.begin(), momenta.end());
  for (size_t k = 0; k < weights.size(); ++k) {
    const auto axes = dense_axes(weights[k]);
    check_like(weights[0], weights[k]);
    for (const auto& other : {momenta[k], gradients[k]}) {
      check_like(weights[0], other);
      STD_TORCH_CHECK(other.dim() == weights[k].dim() && dense_axes(other) == axes,
                      "a tensor, its momentum and its gradient must have one shape and one layout");
    }
    lengths.push_back(weights[k].numel());
  }
  check_apart(updated, gradients);
  return offsets_of(lengths);
}

}  // namespace bissl_fast

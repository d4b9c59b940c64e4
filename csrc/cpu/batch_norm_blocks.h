// Which part of a batch norm is worked on by whom: blocks of channels of a group, cut into tiles.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cpu/batch_norm.h"
#include "cpu/batch_norm_math.h"

namespace bissl_fast::cpu {

// Some channels of a group. One thread does a block from its first reduction to its last write, so that whatever is
// read twice comes from the cache; sums are formed in an order that depends on the shape alone.
struct Block {
  int64_t rows, stride, channels, run;
  int64_t offset;      // of its first value, in tensors shaped like x
  int64_t channel;     // its first one
  int64_t statistics;  // offset of the first channel's, in (G, C)
  int64_t ranks;

  // The values of each channel, on all ranks.
  double values() const { return static_cast<double>(rows * run * ranks); }
};

inline constexpr int64_t kMaxChannels = 128;  // of a block
inline constexpr int64_t kTileBytes = 32768;  // of one tensor
template <class T>
inline constexpr int64_t kMaxTileRows = sizeof(T) == 2 ? 128 : 64;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where each column is a channel: whole cache lines, and as many as leave a block to every thread, since long rows are
// read faster. All such tiles have kMaxTileRows rows, so that the width does not change a channel's sums.
template <class T>
int64_t channels_per_block(const BatchNormShape& shape) {
  if (shape.run > 1) return std::min(shape.channels, divide_up(kMaxChannels, shape.run));
  constexpr int64_t line = 64 / sizeof(T);
  constexpr int64_t widest = std::min<int64_t>(kMaxChannels, kTileBytes / kMaxTileRows<T> / sizeof(T));
  const int64_t share = divide_up(shape.groups * shape.channels, torch::stable::get_num_threads());
  return std::min(shape.channels, std::clamp(divide_up(share, line) * line, line, widest));
}

// Calls work(Block) for every block, on several threads.
template <class T, class Work>
void for_each_block(const BatchNormShape& shape, const Work& work) {
  constexpr int64_t kGrain = 32768;  // values that are worth a thread, as PyTorch has it
  const int64_t channels = channels_per_block<T>(shape), per_group = divide_up(shape.channels, channels);
  const int64_t grain = std::max<int64_t>(1, kGrain / (shape.values() * channels));
  torch::stable::parallel_for(0, shape.groups * per_group, grain, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t group = k / per_group, channel = k % per_group * channels;
      work(Block{shape.rows, shape.cols(), std::min(channels, shape.channels - channel), shape.run,
                 group * shape.rows * shape.cols() + channel * shape.run, channel, group * shape.channels + channel,
                 shape.ranks});
    }
  });
}

// Calls visit(Tile, offset) for every tile of a block. Only a block of one channel is ever cut between columns.
template <class T, class Visit>
void for_each_tile(const Block& block, const Visit& visit) {
  const int64_t strips = divide_up(block.channels * block.run, kMaxCols);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t begin = block.run * strip / strips, end = block.run * (strip + 1) / strips;
    const int64_t cols = block.channels * (end - begin), fitting = kTileBytes / static_cast<int64_t>(sizeof(T)) / cols;
    const int64_t rows = std::clamp<int64_t>(fitting, 1, kMaxTileRows<T>);
    for (int64_t row = 0; row < block.rows; row += rows) {
      visit(Tile{std::min(rows, block.rows - row), block.stride, block.channels, end - begin},
            block.offset + row * block.stride + begin);
    }
  }
}

// A value for each column of a tile.
template <class T>
struct Columns {
  alignas(64) T values[kMaxCols];

  template <class OfChannel>
  void set(int64_t channels, int64_t run, const OfChannel& of_channel) {
    for (int64_t c = 0; c < channels; ++c) std::fill_n(values + c * run, run, static_cast<T>(of_channel(c)));
  }
};

// What multiplies the tensors of one channel; see Factors.
struct ChannelFactors {
  double of_x = 0, of_x_t = 0, of_g = 0, of_g_t = 0, constant = 0;
};

// The factors of a block's columns.
template <class T>
class BlockFactors {
 public:
  // `mean` and `of_channel(c) -> ChannelFactors` are those of the block's channels.
  template <class OfChannel>
  BlockFactors(const Block& block, const Wide<T>* mean, const OfChannel& of_channel) {
    ChannelFactors factors[kMaxChannels];
    for (int64_t c = 0; c < block.channels; ++c) factors[c] = of_channel(c);
    const int64_t run = std::min(block.run, kMaxCols);
    mean_.set(block.channels, run, [&](int64_t c) { return mean[c]; });
    of_x_.set(block.channels, run, [&](int64_t c) { return factors[c].of_x; });
    of_x_t_.set(block.channels, run, [&](int64_t c) { return factors[c].of_x_t; });
    of_g_.set(block.channels, run, [&](int64_t c) { return factors[c].of_g; });
    of_g_t_.set(block.channels, run, [&](int64_t c) { return factors[c].of_g_t; });
    constant_.set(block.channels, run, [&](int64_t c) { return factors[c].constant; });
  }

  Factors<T> get() const {
    return {mean_.values, of_x_.values, of_x_t_.values, of_g_.values, of_g_t_.values, constant_.values};
  }

 private:
  Columns<Wide<T>> mean_, of_x_, of_x_t_, of_g_, of_g_t_, constant_;
};

}  // namespace bissl_fast::cpu

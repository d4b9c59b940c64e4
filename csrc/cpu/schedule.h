// Which tiles of the similarity matrix are visited, in which order and by whom.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace bissl_fast::cpu {

// The stacked rows are cut into blocks, none across the border of the two views, and the blocks play a round-robin
// tournament: in a round every block meets one other block. A pair of blocks is one tile, worked on by one thread, which
// may write to the rows of both blocks, since nobody else has them in that round. So one visit serves both triangles of
// the symmetric matrix with neither atomics nor copies, and every sum is formed in the order of the rounds: the same
// bits each time, for a given number of threads.
class Schedule {
 public:
  // One tile: its blocks, who works on it (concurrent visits have different workers), its number among all tiles.
  struct Visit {
    int64_t row_block, col_block, worker, number;
    bool diagonal() const { return row_block == col_block; }
  };

  static constexpr int64_t kLargestBlock = 256;

  Schedule(int64_t pairs, bool cross_view, int64_t blocks_per_view)
      : pairs_(pairs),
        cross_view_(cross_view),
        per_view_(blocks_per_view),
        workers_(std::min<int64_t>(torch::stable::get_num_threads(), blocks_per_view)) {}

  // How many blocks a view may be cut into.
  static int64_t fewest_blocks(int64_t pairs) { return divide_up(pairs, kLargestBlock); }
  static int64_t most_blocks(int64_t pairs) { return divide_up(pairs, kSmallestBlock); }
  // As many blocks as give every thread the same number of games per round, unless they become too small to be worth it.
  static int64_t best_blocks_per_view(int64_t pairs) {
    const int64_t threads = torch::stable::get_num_threads();
    return std::min(divide_up(fewest_blocks(pairs), threads) * threads, most_blocks(pairs));
  }

  int64_t blocks_per_view() const { return per_view_; }
  int64_t workers() const { return workers_; }
  int64_t begin(int64_t block) const {
    const int64_t view = block / per_view_;
    return view * pairs_ + (block % per_view_) * pairs_ / per_view_;
  }
  int64_t size(int64_t block) const {
    const int64_t k = block % per_view_;
    return (k + 1) * pairs_ / per_view_ - k * pairs_ / per_view_;
  }
  int64_t largest() const { return divide_up(pairs_, per_view_); }
  int64_t tiles() const { return per_view_ * (cross_view_ ? per_view_ : 2 * per_view_ + 1); }

  // Calls visit(Visit) for every tile: the diagonal first (not with cross_view), then one of each mirrored pair.
  template <class Work>
  void run(const Work& visit) const {
    for (int64_t round = cross_view_ ? 0 : -1; round < rounds(); ++round) {
      torch::stable::parallel_for(0, workers_, 1, [&](int64_t first, int64_t last) {
        for (int64_t worker = first; worker < last; ++worker) {
          const int64_t begin = games(round) * worker / workers_, end = games(round) * (worker + 1) / workers_;
          for (int64_t game = begin; game < end; ++game) visit(at(round, game, worker));
        }
      });
    }
  }
  template <class Work>
  void run_serially(const Work& visit) const {
    for (int64_t round = cross_view_ ? 0 : -1; round < rounds(); ++round) {
      for (int64_t game = 0; game < games(round); ++game) visit(at(round, game, 0));
    }
  }

 private:
  static constexpr int64_t kSmallestBlock = 32;

  static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

  int64_t rounds() const { return cross_view_ ? per_view_ : 2 * per_view_ - 1; }
  // In the round before the first one, every block plays itself.
  int64_t games(int64_t round) const { return round < 0 ? 2 * per_view_ : per_view_; }

  Visit at(int64_t round, int64_t game, int64_t worker) const {
    if (round < 0) return {game, game, worker, game};
    if (cross_view_) return {game, per_view_ + (game + round) % per_view_, worker, round * per_view_ + game};
    // The circle method: the last block stays where it is and the others turn around it.
    const int64_t circle = 2 * per_view_ - 1, number = 2 * per_view_ + round * per_view_ + game;
    if (game == 0) return {round, circle, worker, number};
    return {(round + game) % circle, (round + circle - game) % circle, worker, number};
  }

  int64_t pairs_;
  bool cross_view_;
  int64_t per_view_;
  int64_t workers_;
};

}  // namespace bissl_fast::cpu

// What a forward pass keeps for its derivatives, in one buffer whose length depends on shapes only, never on threads:
//   header (16)  |  statistics (N)  |  complements (N)  |  exponentials of one triangle, where they are small.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/contrastive.h"
#include "cpu/schedule.h"

namespace bissl_fast::cpu {

// `V` is T or const T.
template <class V>
class Kept {
 public:
  Kept(const Problem& problem, V* buffer) : problem_(problem), buffer_(buffer) {}

  // Into how many blocks the forward pass cut each view.
  V& blocks_per_view() const { return buffer_[0]; }
  // The row statistics of Softmax, unrounded by a log-sum of their own dtype.
  V* statistics() const { return buffer_ + kHeader; }
  // 1 - P_i,partner(i), accurate where the loss is small and P is near one.
  V* complements() const { return statistics() + problem_.rows(); }
  V* tiles() const { return complements() + problem_.rows(); }
  bool has_tiles() const { return size(problem_) > front(problem_); }

  static int64_t size(const Problem& problem) {
    const int64_t rows = problem.rows(), block = Schedule::kLargestBlock;
    const int64_t tiles = problem.cross_view ? problem.pairs * problem.pairs : rows * (rows + block) / 2;
    return front(problem) + (tiles <= std::min(kPerEmbedding * rows * problem.dim, kMost) ? tiles : 0);
  }

 private:
  static constexpr int64_t kHeader = 16;              // keeps the alignment of the buffer
  static constexpr int64_t kPerEmbedding = 20;        // the tiles are at most so many times the embeddings: O(N D)
  static constexpr int64_t kMost = int64_t{1} << 26;  // values: 256 MiB of float

  static int64_t front(const Problem& problem) { return kHeader + 2 * problem.rows(); }

  const Problem& problem_;
  V* buffer_;
};

// Where each tile lies when all of them are stored.
class Layout {
 public:
  explicit Layout(const Schedule& schedule) : offsets_(schedule.tiles() + 1) {
    schedule.run_serially([&](const Schedule::Visit& at) {
      offsets_[at.number + 1] = schedule.size(at.row_block) * schedule.size(at.col_block);
    });
    for (size_t k = 1; k < offsets_.size(); ++k) offsets_[k] += offsets_[k - 1];
  }
  int64_t offset(const Schedule::Visit& at) const { return offsets_[at.number]; }
  int64_t size() const { return offsets_.back(); }

 private:
  std::vector<int64_t> offsets_;
};

}  // namespace bissl_fast::cpu

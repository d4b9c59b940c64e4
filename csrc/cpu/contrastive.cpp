#include "cpu/contrastive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "cpu/row_math.h"
#include "cpu/tiles.h"

namespace bissl_fast::cpu {
namespace {

constexpr int64_t kRowGrain = 64;                   // rows that are worth a thread
constexpr int64_t kKeptPerEmbedding = 10;           // the kept triangle is at most so many times the embeddings
constexpr int64_t kMostKept = int64_t{1} << 24;     // values
constexpr int64_t kBlock = Schedule::kLargestBlock;

// How the softmax of a temperature is formed from similarities. Sums of exp((s - 1) / tau) reach down to exp(-2 / tau),
// which must stay a normal number and far above what exp() leaves of the diagonal.
template <class T>
Form form_of(const Problem& problem) {
  constexpr double kLargestRange = std::is_same_v<T, float> ? 60 : 600;
  return 2 / problem.temperature <= kLargestRange ? Form::kShared : Form::kPerRow;
}

template <class T>
std::vector<T> row_statistics(const Problem& problem, Form form, const T* lse) {
  std::vector<T> statistics(problem.rows());
  for (int64_t i = 0; i < problem.rows(); ++i) {
    const double value = static_cast<double>(lse[i]);
    statistics[i] = static_cast<T>(form == Form::kPerRow ? value * problem.temperature
                                                         : std::exp(1 / problem.temperature - value));
  }
  return statistics;
}

template <class T>
std::vector<T> row_maxima(const Problem& problem, const Tiles<T>& tiles) {
  std::vector<T> maxima(problem.rows(), -std::numeric_limits<T>::infinity());
  tiles.schedule().run([&](const Visit& at) {
    T* values = tiles.scratch(at, 0);
    tiles.similarities(at, values);
    join_maxima(tiles.with_statistics(at, values, maxima.data()), tiles.of_rows(at, maxima.data()),
                tiles.of_cols(at, maxima.data()));
  });
  return maxima;
}

template <class Work>
void each_row(const Problem& problem, const Work& work) {
  torch::stable::parallel_for(0, problem.rows(), kRowGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) work(i);
  });
}

template <class T>
T scale_of(const Problem& problem) {
  return static_cast<T>(1 / (problem.temperature * static_cast<double>(problem.rows())));
}

// The tiles of a derivative: what the forward pass kept, else computed again.
template <class T>
class SavedTiles {
 public:
  SavedTiles(const Problem& problem, const Saved<T>& saved, int64_t scratch)
      : kept_(form_of<T>(problem) == Form::kShared ? saved.kept : nullptr),
        softmax_{static_cast<T>(1 / problem.temperature), kept_ ? Form::kExponentials : form_of<T>(problem)},
        statistics_(row_statistics(problem, softmax_.form, saved.lse)),
        tiles_(problem, saved.units,
               kept_ ? Layout::blocks_per_view(kept_) : Schedule::best_blocks_per_view(problem.pairs), scratch),
        layout_(tiles_.schedule()) {}

  bool kept() const { return kept_ != nullptr; }
  const Tiles<T>& tiles() const { return tiles_; }
  const Layout& layout() const { return layout_; }
  const Softmax<T>& softmax() const { return softmax_; }

  // The kept tile, or the similarities computed into scratch memory 0.
  Tile<T> values(const Visit& at) const {
    if (kept()) return tiles_.with_statistics(at, kept_ + layout_.offset(at), statistics_.data());
    T* out = tiles_.scratch(at, 0);
    tiles_.similarities(at, out);
    return tiles_.with_statistics(at, out, statistics_.data());
  }

 private:
  const T* kept_;
  Softmax<T> softmax_;
  std::vector<T> statistics_;
  Tiles<T> tiles_;
  Layout layout_;
};

}  // namespace

int64_t kept_size(const Problem& problem) {
  const int64_t rows = problem.rows();
  const int64_t size = Layout::kHeader + (problem.cross_view ? problem.pairs * problem.pairs : rows * (rows + kBlock) / 2);
  return size <= std::min(kKeptPerEmbedding * rows * problem.dim, kMostKept) ? size : 0;
}

template <class T>
void normalise(const Problem& problem, const T* z1, const T* z2, T* units, T* inv_norms) {
  const int64_t dim = problem.dim;
  each_row(problem, [&](int64_t i) {
    const T* z = i < problem.pairs ? z1 + i * dim : z2 + (i - problem.pairs) * dim;
    inv_norms[i] = normalise_row(z, dim, units + i * dim);
  });
}

template <class T>
double forward(const Problem& problem, const T* units, T* lse, T* kept) {
  const Tiles<T> tiles(problem, units, Schedule::best_blocks_per_view(problem.pairs), 1);
  const Layout layout(tiles.schedule());
  const Softmax<T> softmax{static_cast<T>(1 / problem.temperature), form_of<T>(problem)};
  const bool shared = softmax.form == Form::kShared;
  const auto maxima = shared ? std::vector<T>(problem.rows(), T{1}) : row_maxima(problem, tiles);
  if (kept) layout.begin(kept, kept_size(problem));
  std::vector<double> sums(problem.rows(), 0.0);  // over the negatives
  std::vector<double> positives(problem.rows());
  tiles.schedule().run([&](const Visit& at) {
    T* values = kept ? kept + layout.offset(at) : tiles.scratch(at, 0);
    tiles.similarities(at, values);
    if (tiles.has_positives(at)) tiles.take_positives(at, values, positives.data());
    add_exp_sums(tiles.with_statistics(at, values, maxima.data()), softmax, tiles.of_rows(at, sums.data()),
                 tiles.of_cols(at, sums.data()), values);
    if (kept && tiles.has_positives(at)) tiles.put_positives(at, positives.data(), problem.temperature, values);
  });

  // log(1 + negatives / positive) keeps its accuracy where the loss is small, which a log-sum less the positive loses.
  double total = 0;
  for (int64_t i = 0; i < problem.rows(); ++i) {
    const double positive = positives[i] / problem.temperature;
    const double log_negatives = std::log(sums[i]) + static_cast<double>(maxima[i]) / problem.temperature;
    const double excess = log_negatives - positive;
    const double loss = std::max(excess, 0.0) + std::log1p(std::exp(-std::abs(excess)));
    lse[i] = static_cast<T>(positive + loss);
    total += std::isnan(excess) ? excess : loss;
  }
  return total / static_cast<double>(problem.rows());
}

template <class T>
void backward(const Problem& problem, const Saved<T>& saved, T* grad, T* radial) {
  const int64_t dim = problem.dim;
  const SavedTiles<T> tiles(problem, saved, 1);
  std::fill_n(grad, problem.rows() * dim, T{0});
  tiles.tiles().schedule().run([&](const Visit& at) {
    T* weights = tiles.tiles().scratch(at, 0);
    to_weights(tiles.values(at), tiles.softmax(), weights);
    tiles.tiles().scatter(at, weights, saved.units, grad);
  });
  const T scale = scale_of<T>(problem);
  each_row(problem, [&](int64_t i) {
    const T* u = saved.units + i * dim;
    const T* partner = saved.units + problem.partner(i) * dim;
    radial[i] = finish_gradient_row(u, partner, saved.inv_norms[i], scale, dim, grad + i * dim);
  });
}

template <class T>
void backward_backward(const Problem& problem, const Saved<T>& saved, const T* grad, const T* radial,
                       const T* tangent, T* product) {
  const int64_t dim = problem.dim;
  const SavedTiles<T> saved_tiles(problem, saved, 2);
  const Tiles<T>& tiles = saved_tiles.tiles();
  const auto udot = std::make_unique_for_overwrite<T[]>(problem.rows() * dim);
  each_row(problem, [&](int64_t i) {
    unit_tangent_row(saved.units + i * dim, tangent + i * dim, saved.inv_norms[i], dim, udot.get() + i * dim);
  });

  // First r_i = sum_j P_ij Sdot_ij, the tangent of lse_i. Where the tiles of P are kept, so are those of Sdot.
  const auto kept = std::make_unique_for_overwrite<T[]>(saved_tiles.kept() ? saved_tiles.layout().size() : 0);
  const auto similarity_tangents = [&](const Visit& at) {
    return saved_tiles.kept() ? kept.get() + saved_tiles.layout().offset(at) : tiles.scratch(at, 1);
  };
  std::vector<double> sums(problem.rows(), 0.0);
  tiles.schedule().run([&](const Visit& at) {
    tiles.tangents(at, udot.get(), similarity_tangents(at));
    add_tangent_sums(saved_tiles.values(at), similarity_tangents(at), saved_tiles.softmax(),
                     tiles.of_rows(at, sums.data()), tiles.of_cols(at, sums.data()));
  });
  const std::vector<T> lse_tangents(sums.begin(), sums.end());

  std::fill_n(product, problem.rows() * dim, T{0});
  tiles.schedule().run([&](const Visit& at) {
    T* weights = tiles.scratch(at, 0);
    T* tangent_weights = similarity_tangents(at);
    if (!saved_tiles.kept()) tiles.tangents(at, udot.get(), tangent_weights);
    to_tangent_weights(saved_tiles.values(at), tangent_weights, saved_tiles.softmax(),
                       tiles.of_rows(at, lse_tangents.data()), tiles.of_cols(at, lse_tangents.data()), weights);
    tiles.scatter(at, weights, udot.get(), product);
    tiles.scatter(at, tangent_weights, saved.units, product);
  });

  const T scale = scale_of<T>(problem);
  each_row(problem, [&](int64_t i) {
    const T* partner_udot = udot.get() + problem.partner(i) * dim;
    finish_product_row(saved.units + i * dim, tangent + i * dim, udot.get() + i * dim, partner_udot, grad + i * dim,
                       radial[i], saved.inv_norms[i], scale, dim, product + i * dim);
  });
}

#define INSTANTIATE(T)                                                                                     \
  template void normalise(const Problem&, const T*, const T*, T*, T*);                                     \
  template double forward(const Problem&, const T*, T*, T*);                                               \
  template void backward(const Problem&, const Saved<T>&, T*, T*);                                         \
  template void backward_backward(const Problem&, const Saved<T>&, const T*, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace bissl_fast::cpu

#include "cpu/contrastive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "cpu/kept.h"
#include "cpu/row_math.h"
#include "cpu/tiles.h"

namespace bissl_fast::cpu {
namespace {

constexpr int64_t kRowGrain = 64;  // rows that are worth a thread

// How the softmax of a temperature is formed from similarities. Sums of exp((s - 1) / tau) reach down to exp(-2 / tau),
// which must stay a normal number and far above what exp() leaves of the diagonal.
template <class T>
Form form_of(const Problem& problem) {
  constexpr double kLargestRange = std::is_same_v<T, float> ? 60 : 600;
  return 2 / problem.temperature <= kLargestRange ? Form::kShared : Form::kPerRow;
}

// Over the negatives; a row without any gets the least similarity there is.
template <class T>
std::vector<T> row_maxima(const Problem& problem, const Tiles<T>& tiles) {
  std::vector<T> maxima(problem.rows(), T{-1});
  tiles.schedule().run([&](const Visit& at) {
    T* values = tiles.scratch(at, 0);
    tiles.negatives(at, values);
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

// Of each pair, in double: one is near one, where a product in T rounds most, and stands against all negatives of a row.
template <class T>
std::vector<double> positive_similarities(const Problem& problem, const T* units) {
  std::vector<double> found(problem.pairs);
  torch::stable::parallel_for(0, problem.pairs, kRowGrain, [&](int64_t first, int64_t last) {
    const int64_t dim = problem.dim;
    for (int64_t i = first; i < last; ++i) found[i] = dot_rows(units + i * dim, units + (i + problem.pairs) * dim, dim);
  });
  return found;
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
      : kept_(problem, saved.kept),
        stored_(kept_.has_tiles() && form_of<T>(problem) == Form::kShared),
        softmax_{static_cast<T>(1 / problem.temperature), stored_ ? Form::kExponentials : form_of<T>(problem)},
        tiles_(problem, saved.units, static_cast<int64_t>(kept_.blocks_per_view()), scratch),
        layout_(tiles_.schedule()) {}

  bool stored() const { return stored_; }
  const Tiles<T>& tiles() const { return tiles_; }
  const Layout& layout() const { return layout_; }
  const Softmax<T>& softmax() const { return softmax_; }

  // The stored tile, or the similarities computed into scratch memory 0, in which positive pairs weigh nothing.
  Tile<T> values(const Visit& at) const {
    if (stored()) return tiles_.with_statistics(at, kept_.tiles() + layout_.offset(at), kept_.statistics());
    T* out = tiles_.scratch(at, 0);
    tiles_.negatives(at, out);
    return tiles_.with_statistics(at, out, kept_.statistics());
  }
  // A positive pair weighs P_ij + P_ji - 2, formed from 1 - P: the difference would cancel.
  const T* complements() const { return kept_.complements(); }
  void pull_positives(const Visit& at, T* weights) const { tiles_.pull_positives(at, weights, complements()); }

 private:
  Kept<const T> kept_;
  bool stored_;
  Softmax<T> softmax_;
  Tiles<T> tiles_;
  Layout layout_;
};

// From sums over the negatives, so that the digits of 1 - P are kept where P of the positive is near one:
// the excess e_i = sum_{j != p} P_ij Sdot_ij - (1 - P_ip) Sdot_ip, and Sdot_ip - r_i = -e_i.
template <class T>
struct LogSumTangents {
  std::vector<T> means;  // r_i = e_i + Sdot_ip, the tangent of lse_i
  std::vector<T> pulls;  // P_ip e_i, the tangent of 1 - P_ip

  // `positives` holds tau * Sdot_ip.
  LogSumTangents(const Problem& problem, const T* complements, const std::vector<double>& sums,
                 const std::vector<double>& positives)
      : means(sums.size()), pulls(sums.size()) {
    for (size_t i = 0; i < sums.size(); ++i) {
      const double positive = positives[i] / problem.temperature, complement = complements[i];
      const double excess = sums[i] - complement * positive;
      means[i] = static_cast<T>(excess + positive);
      pulls[i] = static_cast<T>((1 - complement) * excess);
    }
  }
};

}  // namespace

int64_t kept_size(const Problem& problem) { return Kept<float>::size(problem); }

template <class T>
bool is_kept(const Problem& problem, const T* kept) {
  const T blocks = Kept<const T>(problem, kept).blocks_per_view();
  return blocks >= static_cast<T>(Schedule::fewest_blocks(problem.pairs)) &&
         blocks <= static_cast<T>(Schedule::most_blocks(problem.pairs));
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
double forward(const Problem& problem, const T* units, T* lse, T* buffer) {
  const Tiles<T> tiles(problem, units, Schedule::best_blocks_per_view(problem.pairs), 1);
  const Layout layout(tiles.schedule());
  const Softmax<T> softmax{static_cast<T>(1 / problem.temperature), form_of<T>(problem)};
  const bool shared = softmax.form == Form::kShared;
  const Kept<T> kept(problem, buffer);
  const bool stored = kept.has_tiles() && shared;
  // Equal inputs give equal buffers, also where nothing is written.
  std::fill(buffer, kept.tiles(), T{0});
  std::fill(kept.tiles() + (stored ? layout.size() : 0), buffer + kept_size(problem), T{0});
  kept.blocks_per_view() = static_cast<T>(tiles.schedule().blocks_per_view());

  const auto maxima = shared ? std::vector<T>(problem.rows(), T{1}) : row_maxima(problem, tiles);
  std::vector<double> sums(problem.rows(), 0.0);  // over the negatives
  tiles.schedule().run([&](const Visit& at) {
    T* values = stored ? kept.tiles() + layout.offset(at) : tiles.scratch(at, 0);
    tiles.negatives(at, values);
    add_exp_sums(tiles.with_statistics(at, values, maxima.data()), softmax, tiles.of_rows(at, sums.data()),
                 tiles.of_cols(at, sums.data()), values);
  });

  // log(1 + negatives / positive) keeps its accuracy where the loss is small, which a log-sum less the positive loses.
  double total = 0;
  const auto positives = positive_similarities(problem, units);
  for (int64_t i = 0; i < problem.rows(); ++i) {
    const double positive = positives[i % problem.pairs] / problem.temperature;
    const double excess = std::log(sums[i]) + static_cast<double>(maxima[i]) / problem.temperature - positive;
    const double loss =
        std::isnan(excess) ? excess : std::max(excess, 0.0) + std::log1p(std::exp(-std::abs(excess)));
    const double log_sum = positive + loss;
    lse[i] = static_cast<T>(log_sum);
    kept.statistics()[i] =
        static_cast<T>(shared ? std::exp(1 / problem.temperature - log_sum) : log_sum * problem.temperature);
    kept.complements()[i] = static_cast<T>(-std::expm1(-loss));
    total += loss;
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
    tiles.pull_positives(at, weights);
    tiles.tiles().scatter(at, weights, saved.units, grad);
  });
  const T scale = scale_of<T>(problem);
  each_row(problem, [&](int64_t i) {
    radial[i] = finish_gradient_row(saved.units + i * dim, saved.inv_norms[i], scale, dim, grad + i * dim);
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

  // First the sums of P_ij Sdot_ij over the negatives. Where the tiles of P are stored, so are those of Sdot.
  const auto stored = std::make_unique_for_overwrite<T[]>(saved_tiles.stored() ? saved_tiles.layout().size() : 0);
  const auto similarity_tangents = [&](const Visit& at) {
    return saved_tiles.stored() ? stored.get() + saved_tiles.layout().offset(at) : tiles.scratch(at, 1);
  };
  std::vector<double> sums(problem.rows(), 0.0);
  std::vector<double> positives(problem.rows());
  tiles.schedule().run([&](const Visit& at) {
    tiles.tangents(at, udot.get(), similarity_tangents(at));
    tiles.copy_positives(at, similarity_tangents(at), positives.data());
    add_tangent_sums(saved_tiles.values(at), similarity_tangents(at), saved_tiles.softmax(),
                     tiles.of_rows(at, sums.data()), tiles.of_cols(at, sums.data()));
  });
  const LogSumTangents<T> log_sums(problem, saved_tiles.complements(), sums, positives);

  std::fill_n(product, problem.rows() * dim, T{0});
  tiles.schedule().run([&](const Visit& at) {
    T* weights = tiles.scratch(at, 0);
    T* tangent_weights = similarity_tangents(at);
    if (!saved_tiles.stored()) tiles.tangents(at, udot.get(), tangent_weights);
    to_tangent_weights(saved_tiles.values(at), tangent_weights, saved_tiles.softmax(),
                       tiles.of_rows(at, log_sums.means.data()), tiles.of_cols(at, log_sums.means.data()), weights);
    saved_tiles.pull_positives(at, weights);
    tiles.pull_positives(at, tangent_weights, log_sums.pulls.data());
    tiles.scatter(at, weights, udot.get(), product);
    tiles.scatter(at, tangent_weights, saved.units, product);
  });

  const T scale = scale_of<T>(problem);
  each_row(problem, [&](int64_t i) {
    finish_product_row(saved.units + i * dim, tangent + i * dim, udot.get() + i * dim, grad + i * dim, radial[i],
                       saved.inv_norms[i], scale, dim, product + i * dim);
  });
}

#define INSTANTIATE(T)                                                                                     \
  template bool is_kept(const Problem&, const T*);                                                         \
  template void normalise(const Problem&, const T*, const T*, T*, T*);                                     \
  template double forward(const Problem&, const T*, T*, T*);                                               \
  template void backward(const Problem&, const Saved<T>&, T*, T*);                                         \
  template void backward_backward(const Problem&, const Saved<T>&, const T*, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace bissl_fast::cpu

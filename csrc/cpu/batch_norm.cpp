#include "cpu/batch_norm.h"

#include <cmath>

#include "cpu/batch_norm_blocks.h"

namespace bissl_fast::cpu {
namespace {

// Sums of a block's channels.
struct Sums {
  double values[kMaxChannels] = {};
  double& operator[](int64_t c) { return values[c]; }
};

template <class T>
const T* shifted(const T* values, int64_t offset) {
  return values == nullptr ? nullptr : values + offset;
}

template <class T>
double at_or_zero(const T* values, int64_t k) {
  return values == nullptr ? 0 : static_cast<double>(values[k]);
}

// Rounding may leave a sum of squares just below zero; a NaN stays.
double positive(double value) { return value < 0 ? 0 : value; }

// Of a block.
struct Statistics {
  Sums mean, variance;
};

// A tile's squares are taken around its own mean while it is in the cache, and tiles are joined as by Chan, Golub and
// LeVeque (1979): x is read once, and nothing cancels.
template <class T>
Statistics statistics_of(const Block& block, const T* x) {
  Statistics found;
  Sums &means = found.mean, &squares = found.variance;
  double seen = 0;
  for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
    Sums sums, around;
    Columns<Wide<T>> centre;
    const double count = static_cast<double>(tile.rows * tile.run), share = count / (seen + count);
    add_values(tile, x + offset, sums.values);
    centre.set(tile.channels, tile.run, [&](int64_t c) { return sums[c] / count; });
    add_squares<T>(tile, x + offset, centre.values, around.values);
    for (int64_t c = 0; c < tile.channels; ++c) {
      const double tile_mean = sums[c] / count, delta = tile_mean - means[c];
      const double rounding = tile_mean - static_cast<double>(centre.values[c * tile.run]);
      means[c] += share * delta;
      squares[c] += around[c] - count * rounding * rounding + seen * share * delta * delta;
    }
    seen += count;
  });
  for (int64_t c = 0; c < block.channels; ++c) squares[c] = positive(squares[c]) / seen;
  return found;
}

// Those of all ranks, joined likewise.
template <class W>
Statistics joined(const Block& block, const BatchNormShape& shape, const W* every) {
  Statistics found;
  const auto of_rank = [&](int64_t rank, int64_t plane, int64_t c) {
    return static_cast<double>(every[(2 * rank + plane) * shape.statistics() + block.statistics + c]);
  };
  const double count = static_cast<double>(shape.ranks);
  for (int64_t c = 0; c < block.channels; ++c) {
    for (int64_t rank = 0; rank < shape.ranks; ++rank) found.mean[c] += of_rank(rank, 0, c) / count;
    for (int64_t rank = 0; rank < shape.ranks; ++rank) {
      const double delta = of_rank(rank, 0, c) - found.mean[c];
      found.variance[c] += (of_rank(rank, 1, c) + delta * delta) / count;
    }
  }
  return found;
}

template <class T>
void write_outputs(const Block& block, const ForwardInputs<T>& inputs, const Wide<T>* mean, const Wide<T>* rstd,
                   T* out) {
  const BlockFactors<T> factors(block, mean + block.statistics, [&](int64_t c) {
    const double weight = inputs.weight[block.channel + c], bias = inputs.bias[block.channel + c];
    return ChannelFactors{.of_x = weight * rstd[block.statistics + c], .constant = bias};
  });
  for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
    write_normalised(tile, factors.get(), inputs.x + offset, shifted(inputs.residual, offset), inputs.relu,
                     out + offset);
  });
}

template <class T>
Columns<Wide<T>> means_of(const Block& block, const Normalisation<T>& saved) {
  Columns<Wide<T>> mean;
  mean.set(block.channels, std::min(block.run, kMaxCols), [&](int64_t c) { return saved.mean[block.statistics + c]; });
  return mean;
}

// Adds up v and v * xhat over a block, v being masked if a mask is given.
template <class T>
void add_block_moments(const Block& block, const Normalisation<T>& saved, const T* mask, const T* v, Sums& sums,
                       Sums& products) {
  const Columns<Wide<T>> mean = means_of(block, saved);
  for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
    add_moments<T>(tile, {v + offset, shifted(mask, offset)}, saved.x + offset, mean.values, sums.values,
                   products.values);
  });
  for (int64_t c = 0; c < block.channels; ++c) products[c] *= saved.rstd[block.statistics + c];
}

// Sums of a block's channels, as one of several planes of (G, C) has them.
template <class W>
void write_plane(const Block& block, const BatchNormShape& shape, int64_t plane, Sums& sums, W* planes) {
  W* at = planes + plane * shape.statistics() + block.statistics;
  for (int64_t c = 0; c < block.channels; ++c) at[c] = static_cast<W>(sums[c]);
}

template <class W>
Sums read_plane(const Block& block, const BatchNormShape& shape, int64_t plane, const W* planes) {
  Sums sums;
  const W* at = planes + plane * shape.statistics() + block.statistics;
  for (int64_t c = 0; c < block.channels; ++c) sums[c] = at[c];
  return sums;
}

// What a tangent needs to know of a block.
struct TangentSums {
  Sums x_t, x_t_xhat, g_x_t, g_t, g_t_xhat;

  // Calls visit(plane, sums) in the order of batch_norm_tangent_moments.
  template <class Visit>
  void for_each(const Visit& visit) {
    Sums* all[] = {&x_t, &x_t_xhat, &g_x_t, &g_t, &g_t_xhat};
    for (int64_t plane = 0; plane < 5; ++plane) visit(plane, *all[plane]);
  }
};

template <class T>
TangentSums tangent_sums_of(const Block& block, const Normalisation<T>& saved, const T* grad_out, const T* grad_out_t,
                            const T* x_t) {
  TangentSums sums;
  const Columns<Wide<T>> mean = means_of(block, saved);
  for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
    const T *x = saved.x + offset, *mask = shifted(saved.mask, offset);
    if (x_t != nullptr) {
      add_moments<T>(tile, {x_t + offset, nullptr}, x, mean.values, sums.x_t.values, sums.x_t_xhat.values);
      add_products<T>(tile, {grad_out + offset, mask}, x_t + offset, sums.g_x_t.values);
    }
    if (grad_out_t != nullptr) {
      add_moments<T>(tile, {grad_out_t + offset, mask}, x, mean.values, sums.g_t.values, sums.g_t_xhat.values);
    }
  });
  for (int64_t c = 0; c < block.channels; ++c) {
    sums.x_t_xhat[c] *= saved.rstd[block.statistics + c];
    sums.g_t_xhat[c] *= saved.rstd[block.statistics + c];
  }
  return sums;
}

}  // namespace

template <class T>
void batch_norm_statistics(const BatchNormShape& shape, const T* x, Wide<T>* statistics) {
  for_each_block<T>(shape, [&](const Block& block) {
    Statistics found = statistics_of(block, x);
    write_plane(block, shape, 0, found.mean, statistics);
    write_plane(block, shape, 1, found.variance, statistics);
  });
}

template <class T>
void batch_norm(const BatchNormShape& shape, const ForwardInputs<T>& inputs, const Wide<T>* every, double eps,
                Wide<T>* mean, Wide<T>* rstd, T* out) {
  for_each_block<T>(shape, [&](const Block& block) {
    Statistics found = every == nullptr ? statistics_of(block, inputs.x) : joined(block, shape, every);
    for (int64_t c = 0; c < block.channels; ++c) {
      mean[block.statistics + c] = static_cast<Wide<T>>(found.mean[c]);
      rstd[block.statistics + c] = static_cast<Wide<T>>(1 / std::sqrt(found.variance[c] + eps));
    }
    write_outputs(block, inputs, mean, rstd, out);
  });
}

template <class T>
void batch_norm_moments(const BatchNormShape& shape, const Normalisation<T>& saved, const T* v, Wide<T>* moments) {
  for_each_block<T>(shape, [&](const Block& block) {
    Sums sums, products;
    add_block_moments(block, saved, saved.mask, v, sums, products);
    write_plane(block, shape, 0, sums, moments);
    write_plane(block, shape, 1, products, moments);
  });
}

template <class T>
void batch_norm_apply(const BatchNormShape& shape, const ForwardInputs<T>& inputs, const Wide<T>* mean,
                      const Wide<T>* rstd, T* out) {
  for_each_block<T>(shape, [&](const Block& block) { write_outputs(block, inputs, mean, rstd, out); });
}

template <class T>
void batch_norm_backward(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                         bool known_sums, const Gradients<T>& gradients) {
  for_each_block<T>(shape, [&](const Block& block) {
    Wide<T> *sum_g = gradients.sums + block.statistics, *sum_gx = sum_g + shape.statistics();
    if (!known_sums) {
      Sums sums, products;
      add_block_moments(block, saved, saved.mask, grad_out, sums, products);
      write_plane(block, shape, 0, sums, gradients.sums);
      write_plane(block, shape, 1, products, gradients.sums);
    }
    // dx = weight rstd (g - sum_g / M - xhat sum_gx / M)
    const BlockFactors<T> factors(block, saved.mean + block.statistics, [&](int64_t c) {
      const double rstd = saved.rstd[block.statistics + c], slope = saved.weight[block.channel + c] * rstd;
      return ChannelFactors{.of_x = -slope * rstd * sum_gx[c] / block.values(),
                            .of_g = slope,
                            .constant = -slope * sum_g[c] / block.values()};
    });
    for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
      const Masked<T> g{grad_out + offset, shifted(saved.mask, offset)};
      write_gradient<T>(tile, factors.get(), saved.x + offset, nullptr, g, nullptr, gradients.dx + offset);
      if (gradients.dresidual != nullptr) write_masked(tile, g, gradients.dresidual + offset);
    });
  });
}

template <class T>
void batch_norm_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const Tangents<T>& tangents,
                        const Wide<T>* moments, T* out_t) {
  for_each_block<T>(shape, [&](const Block& block) {
    Sums sums, products;
    if (moments != nullptr) {
      sums = read_plane(block, shape, 0, moments);
      products = read_plane(block, shape, 1, moments);
    } else if (tangents.x_t != nullptr) {
      add_block_moments<T>(block, saved, nullptr, tangents.x_t, sums, products);
    }
    // out_t = weight_t xhat + weight rstd (x_t - a - xhat s) + bias_t + residual_t
    const BlockFactors<T> factors(block, saved.mean + block.statistics, [&](int64_t c) {
      const double a = sums[c] / block.values(), s = products[c] / block.values();
      const double rstd = saved.rstd[block.statistics + c], slope = saved.weight[block.channel + c] * rstd;
      return ChannelFactors{.of_x = rstd * (at_or_zero(tangents.weight_t, block.channel + c) - slope * s),
                            .of_x_t = slope,
                            .constant = at_or_zero(tangents.bias_t, block.channel + c) - slope * a};
    });
    for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
      write_tangent(tile, factors.get(), saved.x + offset, shifted(tangents.x_t, offset),
                    shifted(tangents.residual_t, offset), shifted(saved.mask, offset), out_t + offset);
    });
  });
}

template <class T>
void batch_norm_tangent_moments(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                                const T* grad_out_t, const T* x_t, Wide<T>* moments) {
  for_each_block<T>(shape, [&](const Block& block) {
    tangent_sums_of(block, saved, grad_out, grad_out_t, x_t).for_each([&](int64_t plane, Sums& sums) {
      write_plane(block, shape, plane, sums, moments);
    });
  });
}

template <class T>
void batch_norm_backward_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                                 const KnownSums<T>& known, const T* grad_out_t, const T* x_t, const Wide<T>* weight_t,
                                 const Gradients<T>& tangents) {
  const Wide<T> *sum_g = known.sums, *sum_gx = sum_g + shape.statistics();
  for_each_block<T>(shape, [&](const Block& block) {
    TangentSums sums;
    if (known.moments == nullptr) {
      sums = tangent_sums_of(block, saved, grad_out, grad_out_t, x_t);
    } else {
      sums.for_each([&](int64_t plane, Sums& all) { all = read_plane(block, shape, plane, known.moments); });
    }
    const double values = block.values();
    // The derivative of dx in BatchNormBackward, with xhat_t = rstd (x_t - a - xhat s) and rstd_t = -rstd^2 s put in.
    const BlockFactors<T> factors(block, saved.mean + block.statistics, [&](int64_t c) {
      const int64_t k = block.statistics + c;
      const double weight = saved.weight[block.channel + c], rstd = saved.rstd[k], slope = weight * rstd;
      const double a = sums.x_t[c] / values, s = sums.x_t_xhat[c] / values;
      const double slope_t = at_or_zero(weight_t, block.channel + c) * rstd - slope * rstd * s;
      const double sum_gx_t = sums.g_t_xhat[c] + rstd * (sums.g_x_t[c] - a * sum_g[k] - s * sum_gx[k]);
      const double mean_g = sum_g[k] / values, mean_gx = sum_gx[k] / values;
      double own_g_t = sums.g_t[c], own_gx_t = sum_gx_t;
      if (known.own_moments != nullptr) {
        const int64_t plane = shape.statistics();
        const Wide<T> *own = known.own_moments + k, *own_g = known.own_sums + k;
        own_g_t = own[3 * plane];
        own_gx_t = own[4 * plane] + rstd * (own[2 * plane] - a * own_g[0] - s * own_g[plane]);
      }
      tangents.sums[k] = static_cast<Wide<T>>(own_g_t);
      tangents.sums[shape.statistics() + k] = static_cast<Wide<T>>(own_gx_t);
      return ChannelFactors{
          .of_x = rstd * ((slope * rstd * s - slope_t) * mean_gx - slope * sum_gx_t / values),
          .of_x_t = -slope * rstd * mean_gx,
          .of_g = slope_t,
          .of_g_t = slope,
          .constant = slope * rstd * a * mean_gx - slope_t * mean_g - slope * sums.g_t[c] / values};
    });
    for_each_tile<T>(block, [&](const Tile& tile, int64_t offset) {
      const T *mask = shifted(saved.mask, offset), *g_t = shifted(grad_out_t, offset);
      write_gradient<T>(tile, factors.get(), saved.x + offset, shifted(x_t, offset), {grad_out + offset, mask}, g_t,
                        tangents.dx + offset);
      if (tangents.dresidual != nullptr) write_masked<T>(tile, {g_t, mask}, tangents.dresidual + offset);
    });
  });
}

#define DEFINE_BATCH_NORM(T)                                                                                          \
  template void batch_norm_statistics(const BatchNormShape&, const T*, Wide<T>*);                                     \
  template void batch_norm(const BatchNormShape&, const ForwardInputs<T>&, const Wide<T>*, double, Wide<T>*, Wide<T>*,\
                           T*);                                                                                       \
  template void batch_norm_apply(const BatchNormShape&, const ForwardInputs<T>&, const Wide<T>*, const Wide<T>*, T*); \
  template void batch_norm_moments(const BatchNormShape&, const Normalisation<T>&, const T*, Wide<T>*);               \
  template void batch_norm_backward(const BatchNormShape&, const Normalisation<T>&, const T*, bool,                   \
                                    const Gradients<T>&);                                                             \
  template void batch_norm_tangent(const BatchNormShape&, const Normalisation<T>&, const Tangents<T>&, const Wide<T>*,\
                                   T*);                                                                               \
  template void batch_norm_tangent_moments(const BatchNormShape&, const Normalisation<T>&, const T*, const T*,        \
                                           const T*, Wide<T>*);                                                       \
  template void batch_norm_backward_tangent(const BatchNormShape&, const Normalisation<T>&, const T*,                 \
                                            const KnownSums<T>&, const T*, const T*, const Wide<T>*,                  \
                                            const Gradients<T>&);

DEFINE_BATCH_NORM(BFloat16)
DEFINE_BATCH_NORM(Half)
DEFINE_BATCH_NORM(float)
DEFINE_BATCH_NORM(double)

}  // namespace bissl_fast::cpu

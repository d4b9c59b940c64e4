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

// Mean and rstd of a block. A tile's squares are taken around its own mean while it is in the cache, and tiles are
// joined as by Chan, Golub and LeVeque (1979): x is read once, and nothing cancels.
template <class T>
void write_statistics(const Block& block, const T* x, double eps, Wide<T>* mean, Wide<T>* rstd) {
  Sums means, squares;
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
  for (int64_t c = 0; c < block.channels; ++c) {
    mean[c] = static_cast<Wide<T>>(means[c]);
    rstd[c] = static_cast<Wide<T>>(1 / std::sqrt(positive(squares[c]) / seen + eps));
  }
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

// What a tangent needs to know of a block: sums of x_t, xhat x_t, g_t, g_t xhat and g x_t, in one go.
struct TangentSums {
  Sums x_t, x_t_xhat, g_t, g_t_xhat, g_x_t;
};

template <class T>
void add_tangent_sums(const Block& block, const Normalisation<T>& saved, const T* grad_out, const T* grad_out_t,
                      const T* x_t, TangentSums& sums) {
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
}

}  // namespace

template <class T>
void batch_norm(const BatchNormShape& shape, const ForwardInputs<T>& inputs, double eps, Wide<T>* mean, Wide<T>* rstd,
                T* out) {
  for_each_block<T>(shape, [&](const Block& block) {
    write_statistics(block, inputs.x, eps, mean + block.statistics, rstd + block.statistics);
    write_outputs(block, inputs, mean, rstd, out);
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
    Wide<T> *sum_g = gradients.sum_g + block.statistics, *sum_gx = gradients.sum_gx + block.statistics;
    if (!known_sums) {
      Sums sums, products;
      add_block_moments(block, saved, saved.mask, grad_out, sums, products);
      for (int64_t c = 0; c < block.channels; ++c) {
        sum_g[c] = static_cast<Wide<T>>(sums[c]);
        sum_gx[c] = static_cast<Wide<T>>(products[c]);
      }
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
                        T* out_t) {
  for_each_block<T>(shape, [&](const Block& block) {
    Sums sums, products;
    if (tangents.x_t != nullptr) add_block_moments<T>(block, saved, nullptr, tangents.x_t, sums, products);
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
void batch_norm_backward_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                                 const Wide<T>* sum_g, const Wide<T>* sum_gx, const T* grad_out_t, const T* x_t,
                                 const Wide<T>* weight_t, const Gradients<T>& tangents) {
  for_each_block<T>(shape, [&](const Block& block) {
    TangentSums sums;
    add_tangent_sums(block, saved, grad_out, grad_out_t, x_t, sums);
    const double values = block.values();
    // The derivative of dx in BatchNormBackward, with xhat_t = rstd (x_t - a - xhat s) and rstd_t = -rstd^2 s put in.
    const BlockFactors<T> factors(block, saved.mean + block.statistics, [&](int64_t c) {
      const int64_t k = block.statistics + c;
      const double weight = saved.weight[block.channel + c], rstd = saved.rstd[k], slope = weight * rstd;
      const double a = sums.x_t[c] / values, s = sums.x_t_xhat[c] / values;
      const double slope_t = at_or_zero(weight_t, block.channel + c) * rstd - slope * rstd * s;
      const double sum_gx_t = sums.g_t_xhat[c] + rstd * (sums.g_x_t[c] - a * sum_g[k] - s * sum_gx[k]);
      const double mean_g = sum_g[k] / values, mean_gx = sum_gx[k] / values;
      tangents.sum_g[k] = static_cast<Wide<T>>(sums.g_t[c]);
      tangents.sum_gx[k] = static_cast<Wide<T>>(sum_gx_t);
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

#define DEFINE_BATCH_NORM(T)                                                                                         \
  template void batch_norm(const BatchNormShape&, const ForwardInputs<T>&, double, Wide<T>*, Wide<T>*, T*);          \
  template void batch_norm_apply(const BatchNormShape&, const ForwardInputs<T>&, const Wide<T>*, const Wide<T>*, T*); \
  template void batch_norm_backward(const BatchNormShape&, const Normalisation<T>&, const T*, bool,                  \
                                    const Gradients<T>&);                                                            \
  template void batch_norm_tangent(const BatchNormShape&, const Normalisation<T>&, const Tangents<T>&, T*);          \
  template void batch_norm_backward_tangent(const BatchNormShape&, const Normalisation<T>&, const T*,                \
                                            const Wide<T>*, const Wide<T>*, const T*, const T*, const Wide<T>*,      \
                                            const Gradients<T>&);

DEFINE_BATCH_NORM(BFloat16)
DEFINE_BATCH_NORM(Half)
DEFINE_BATCH_NORM(float)
DEFINE_BATCH_NORM(double)

}  // namespace bissl_fast::cpu

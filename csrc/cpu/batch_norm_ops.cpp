// Batch norm on the CPU as PyTorch ops: tensors in, tensors out, through the stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <optional>
#include <tuple>

#include "cpu/batch_norm.h"
#include "tensors.h"

namespace bissl_fast::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// As is_contiguous(memory_format=...) of PyTorch: axes of one entry may have any stride.
bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  const auto fits = [&](int64_t axis) {
    const bool matches = x.size(axis) == 1 || x.stride(axis) == expected;
    expected *= x.size(axis);
    return matches;
  };
  bool all = fits(1);
  for (int64_t axis = x.dim() - 1; axis > 1; --axis) all = fits(axis) && all;
  return fits(0) && all;
}

// Calls work(T{}) with the type that x is stored as.
template <class Work>
void with_stored_type(const Tensor& x, const Work& work) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return work(double{});
    case ScalarType::Float:
      return work(float{});
    case ScalarType::BFloat16:
      return work(BFloat16{});
    case ScalarType::Half:
      return work(Half{});
    default:
      STD_TORCH_CHECK(false, "x must be float16, bfloat16, float32 or float64");
  }
}

// The shape of x, and the layout that every tensor like it is brought to.
class Layout {
 public:
  Layout(const Tensor& x, int64_t groups, int64_t ranks = 1)
      : x_(x), wide_(is_double(x) ? ScalarType::Double : ScalarType::Float) {
    STD_TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, "x must have shape (N, C, ...) and not be empty");
    STD_TORCH_CHECK(groups > 0 && x.size(0) % groups == 0, "the batch must be a multiple of groups");
    STD_TORCH_CHECK(ranks > 0, "there must be a rank");
    if (!x.is_contiguous() && (x.dim() == 4 || x.dim() == 5) && is_channels_last(x)) {
      format_ = x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
    }
    const int64_t rows = x.size(0) / groups, channels = x.size(1), run = x.numel() / (x.size(0) * channels);
    const bool last = format_ != MemoryFormat::Contiguous;
    shape_ = {groups, last ? rows * run : rows, channels, last ? 1 : run, ranks};
  }

  const BatchNormShape& shape() const { return shape_; }

  Tensor like_x(const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.dim() == x_.dim(), "tensors like x must have its shape");
    for (int64_t axis = 0; axis < x_.dim(); ++axis) {
      STD_TORCH_CHECK(tensor.size(axis) == x_.size(axis), "tensors like x must have its shape");
    }
    check_dtype(tensor, x_.scalar_type());
    return torch::stable::contiguous(tensor, format_);
  }
  Tensor per_channel(const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == shape_.channels, "weights and biases must have shape (C,)");
    check_one_device(x_, tensor);
    const Tensor converted = tensor.scalar_type() == wide_ ? tensor : torch::stable::to(tensor, wide_);
    return torch::stable::contiguous(converted);
  }
  Tensor statistics(const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == shape_.groups && tensor.size(1) == shape_.channels,
                    "statistics must have shape (G, C)");
    check_dtype(tensor, wide_);
    return torch::stable::contiguous(tensor);
  }
  Tensor planes(const Tensor& tensor, int64_t count) const {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == count && tensor.size(1) == shape_.groups &&
                        tensor.size(2) == shape_.channels,
                    "sums must have shape (planes, G, C)");
    check_dtype(tensor, wide_);
    return torch::stable::contiguous(tensor);
  }
  Optional planes(const Optional& tensor, int64_t count) const {
    return tensor ? Optional(planes(*tensor, count)) : tensor;
  }
  Optional like_x(const Optional& tensor) const { return tensor ? Optional(like_x(*tensor)) : tensor; }
  Optional per_channel(const Optional& tensor) const { return tensor ? Optional(per_channel(*tensor)) : tensor; }

  Tensor empty() const {
    return torch::stable::empty(x_.sizes(), x_.scalar_type(), std::nullopt, x_.device(), std::nullopt, format_);
  }
  Tensor empty_residual(bool wanted) const { return wanted ? empty() : torch::stable::new_empty(x_, {0}); }
  Tensor empty_statistics() const { return torch::stable::new_empty(x_, {shape_.groups, shape_.channels}, wide_); }
  Tensor empty_planes(int64_t count) const {
    return torch::stable::new_empty(x_, {count, shape_.groups, shape_.channels}, wide_);
  }

 private:
  void check_dtype(const Tensor& tensor, ScalarType dtype) const {
    check_one_device(x_, tensor);
    STD_TORCH_CHECK(tensor.scalar_type() == dtype,
                    "tensors like x must have its dtype, statistics float64 beside float64 and else float32");
  }

  Tensor x_;
  ScalarType wide_;
  MemoryFormat format_ = MemoryFormat::Contiguous;
  BatchNormShape shape_;
};

template <class T>
const T* data_or_null(const Optional& tensor) {
  return tensor ? data<const T>(*tensor) : nullptr;
}

// The inputs of a forward pass, held while its pointers are used.
struct Forward {
  Tensor x, weight, bias;
  Optional residual;
  bool relu;

  Forward(const Layout& layout, const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual,
          bool relu)
      : x(layout.like_x(x)),
        weight(layout.per_channel(weight)),
        bias(layout.per_channel(bias)),
        residual(layout.like_x(residual)),
        relu(relu) {}
  template <class T>
  ForwardInputs<T> pointers() const {
    return {data<T>(x), data<Wide<T>>(weight), data<Wide<T>>(bias), data_or_null<T>(residual), relu};
  }
};

// What a forward pass leaves to its derivatives, likewise; sums need no weight.
struct Saved {
  Tensor x, out;
  Optional weight;
  Tensor mean, rstd;
  bool relu;

  Saved(const Layout& layout, const Tensor& x, const Tensor& out, const Optional& weight, const Tensor& mean,
        const Tensor& rstd, bool relu)
      : x(layout.like_x(x)),
        out(relu ? layout.like_x(out) : out),
        weight(layout.per_channel(weight)),
        mean(layout.statistics(mean)),
        rstd(layout.statistics(rstd)),
        relu(relu) {}
  template <class T>
  Normalisation<T> pointers() const {
    return {relu ? data<T>(out) : nullptr, data<T>(x), data_or_null<Wide<T>>(weight), data<Wide<T>>(mean),
            data<Wide<T>>(rstd)};
  }
};

template <class T>
Gradients<T> pointers(const Tensor& dx, const Tensor& dresidual, const Tensor& sums) {
  return {data<T>(dx), dresidual.numel() > 0 ? data<T>(dresidual) : nullptr, data<Wide<T>>(sums)};
}

Tensor statistics(const Tensor& x, int64_t groups) {
  const Layout layout(x, groups);
  const Tensor values = layout.like_x(x), found = layout.empty_planes(2);
  with_stored_type(x, [&]<class T>(T) {
    batch_norm_statistics<T>(layout.shape(), data<T>(values), data<Wide<T>>(found));
  });
  return found;
}

std::tuple<Tensor, Tensor, Tensor> fwd(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                       const Optional& residual, int64_t groups, bool relu, double eps,
                                       const Optional& every) {
  const Layout layout(x, groups, every ? every->size(0) / 2 : 1);
  const Forward inputs(layout, x, weight, bias, residual, relu);
  const Optional known = layout.planes(every, 2 * layout.shape().ranks);
  const Tensor out = layout.empty(), mean = layout.empty_statistics(), rstd = layout.empty_statistics();
  with_stored_type(x, [&]<class T>(T) {
    batch_norm<T>(layout.shape(), inputs.pointers<T>(), data_or_null<Wide<T>>(known), eps, data<Wide<T>>(mean),
                  data<Wide<T>>(rstd), data<T>(out));
  });
  return {out, mean, rstd};
}

Tensor apply(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual, const Tensor& mean,
             const Tensor& rstd, int64_t groups, bool relu) {
  const Layout layout(x, groups);
  const Forward inputs(layout, x, weight, bias, residual, relu);
  const Tensor means = layout.statistics(mean), rstds = layout.statistics(rstd), out = layout.empty();
  with_stored_type(x, [&]<class T>(T) {
    batch_norm_apply<T>(layout.shape(), inputs.pointers<T>(), data<Wide<T>>(means), data<Wide<T>>(rstds),
                        data<T>(out));
  });
  return out;
}

Tensor moments(const Tensor& v, const Tensor& x, const Tensor& out, const Tensor& mean, const Tensor& rstd,
               int64_t groups, bool relu) {
  const Layout layout(x, groups);
  const Saved saved(layout, x, out, std::nullopt, mean, rstd, relu);
  const Tensor values = layout.like_x(v), found = layout.empty_planes(2);
  with_stored_type(x, [&]<class T>(T) {
    batch_norm_moments<T>(layout.shape(), saved.pointers<T>(), data<T>(values), data<Wide<T>>(found));
  });
  return found;
}

std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& grad_out, const Tensor& x, const Tensor& out,
                                       const Tensor& weight, const Tensor& mean, const Tensor& rstd, int64_t groups,
                                       bool relu, bool with_residual) {
  const Layout layout(x, groups);
  const Saved saved(layout, x, out, weight, mean, rstd, relu);
  const Tensor cotangent = layout.like_x(grad_out), dx = layout.empty();
  const Tensor dresidual = layout.empty_residual(with_residual), sums = layout.empty_planes(2);
  with_stored_type(x, [&]<class T>(T) {
    batch_norm_backward<T>(layout.shape(), saved.pointers<T>(), data<T>(cotangent), false,
                           pointers<T>(dx, dresidual, sums));
  });
  return {dx, dresidual, sums};
}

std::tuple<Tensor, Tensor> bwd_apply(const Tensor& grad_out, const Tensor& x, const Tensor& out, const Tensor& weight,
                                     const Tensor& mean, const Tensor& rstd, const Tensor& sums, int64_t groups,
                                     bool relu, bool with_residual, int64_t ranks) {
  const Layout layout(x, groups, ranks);
  const Saved saved(layout, x, out, weight, mean, rstd, relu);
  const Tensor cotangent = layout.like_x(grad_out), dx = layout.empty();
  const Tensor dresidual = layout.empty_residual(with_residual), known = layout.planes(sums, 2);
  with_stored_type(x, [&]<class T>(T) {
    batch_norm_backward<T>(layout.shape(), saved.pointers<T>(), data<T>(cotangent), true,
                           pointers<T>(dx, dresidual, known));
  });
  return {dx, dresidual};
}

Tensor jvp(const Optional& x_t, const Tensor& x, const Tensor& out, const Tensor& weight, const Tensor& mean,
           const Tensor& rstd, const Optional& weight_t, const Optional& bias_t, const Optional& residual_t,
           int64_t groups, bool relu, const Optional& moments, int64_t ranks) {
  const Layout layout(x, groups, ranks);
  const Saved saved(layout, x, out, weight, mean, rstd, relu);
  const Optional moved = layout.like_x(x_t), residual = layout.like_x(residual_t);
  const Optional scale = layout.per_channel(weight_t), shift = layout.per_channel(bias_t);
  const Optional known = layout.planes(moments, 2);
  const Tensor out_t = layout.empty();
  with_stored_type(x, [&]<class T>(T) {
    const Tangents<T> tangents{data_or_null<T>(moved), data_or_null<Wide<T>>(scale), data_or_null<Wide<T>>(shift),
                               data_or_null<T>(residual)};
    batch_norm_tangent<T>(layout.shape(), saved.pointers<T>(), tangents, data_or_null<Wide<T>>(known),
                          data<T>(out_t));
  });
  return out_t;
}

Tensor tangent_moments(const Optional& grad_out_t, const Optional& x_t, const Tensor& grad_out, const Tensor& x,
                       const Tensor& out, const Tensor& mean, const Tensor& rstd, int64_t groups, bool relu) {
  const Layout layout(x, groups);
  const Saved saved(layout, x, out, std::nullopt, mean, rstd, relu);
  const Tensor cotangent = layout.like_x(grad_out), found = layout.empty_planes(5);
  const Optional cotangent_t = layout.like_x(grad_out_t), moved = layout.like_x(x_t);
  with_stored_type(x, [&]<class T>(T) {
    batch_norm_tangent_moments<T>(layout.shape(), saved.pointers<T>(), data<T>(cotangent),
                                  data_or_null<T>(cotangent_t), data_or_null<T>(moved), data<Wide<T>>(found));
  });
  return found;
}

std::tuple<Tensor, Tensor, Tensor> bwd_jvp(const Optional& grad_out_t, const Optional& x_t, const Optional& weight_t,
                                           const Tensor& grad_out, const Tensor& x, const Tensor& out,
                                           const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                                           const Tensor& sums, int64_t groups, bool relu, bool with_residual,
                                           const Optional& own_sums, const Optional& moments,
                                           const Optional& own_moments, int64_t ranks) {
  STD_TORCH_CHECK(own_sums.has_value() == moments.has_value() && moments.has_value() == own_moments.has_value(),
                  "sums of several ranks are given together");
  const Layout layout(x, groups, ranks);
  const Saved saved(layout, x, out, weight, mean, rstd, relu);
  const Tensor cotangent = layout.like_x(grad_out), dx_t = layout.empty();
  const Tensor known = layout.planes(sums, 2), sums_t = layout.empty_planes(2);
  const Optional known_own = layout.planes(own_sums, 2), known_moments = layout.planes(moments, 5);
  const Optional known_own_moments = layout.planes(own_moments, 5);
  const Optional cotangent_t = layout.like_x(grad_out_t), moved = layout.like_x(x_t);
  const Optional scale = layout.per_channel(weight_t);
  Tensor dresidual_t = layout.empty_residual(with_residual);
  const bool vanishes = with_residual && !cotangent_t;
  if (vanishes) torch::stable::zero_(dresidual_t);
  with_stored_type(x, [&]<class T>(T) {
    Gradients<T> tangents = pointers<T>(dx_t, dresidual_t, sums_t);
    if (vanishes) tangents.dresidual = nullptr;
    const KnownSums<T> all{data<Wide<T>>(known), data_or_null<Wide<T>>(known_own),
                           data_or_null<Wide<T>>(known_moments), data_or_null<Wide<T>>(known_own_moments)};
    batch_norm_backward_tangent<T>(layout.shape(), saved.pointers<T>(), data<T>(cotangent), all,
                                   data_or_null<T>(cotangent_t), data_or_null<T>(moved), data_or_null<Wide<T>>(scale),
                                   tangents);
  });
  return {dx_t, dresidual_t, sums_t};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bissl_fast, CPU, library) {
  library.impl("batch_norm_statistics", TORCH_BOX(&statistics));
  library.impl("batch_norm_fwd", TORCH_BOX(&fwd));
  library.impl("batch_norm_apply", TORCH_BOX(&apply));
  library.impl("batch_norm_moments", TORCH_BOX(&moments));
  library.impl("batch_norm_bwd", TORCH_BOX(&bwd));
  library.impl("batch_norm_bwd_apply", TORCH_BOX(&bwd_apply));
  library.impl("batch_norm_jvp", TORCH_BOX(&jvp));
  library.impl("batch_norm_tangent_moments", TORCH_BOX(&tangent_moments));
  library.impl("batch_norm_bwd_jvp", TORCH_BOX(&bwd_jvp));
}

}  // namespace bissl_fast::cpu

#include "cpu/lars.h"

#include "cpu/lanes.h"
#include "cpu/slots.h"

namespace bissl_fast::cpu {
namespace {

struct Squares {
  double weight, update;
};

template <class T>
INLINE Squares squares_body(const T* weight, const T* gradient, T decay, int64_t count) {
  LaneSum of_weight, of_update;
  in_lanes(count, [&](int64_t k, int64_t lane) {
    const T update = gradient[k] + decay * weight[k];
    of_weight.lanes[lane] += static_cast<double>(weight[k]) * static_cast<double>(weight[k]);
    of_update.lanes[lane] += static_cast<double>(update) * static_cast<double>(update);
  }, weight, gradient);
  return {of_weight.total(), of_update.total()};
}

template <class T>
INLINE void update_body(T* weight, T* momentum, const T* gradient, const LarsFactors<T>& factors, bool adapted, T ratio,
                        int64_t count) {
  if (adapted) {
    in_lanes(count, [&](int64_t k, int64_t) {
      momentum[k] = factors.momentum * momentum[k] + ratio * (gradient[k] + factors.weight_decay * weight[k]);
      weight[k] -= factors.lr * momentum[k];
    }, weight, momentum, gradient);
  } else {
    in_lanes(count, [&](int64_t k, int64_t) {
      momentum[k] = factors.momentum * momentum[k] + gradient[k];
      weight[k] -= factors.lr * momentum[k];
    }, weight, momentum, gradient);
  }
}

// target_clones takes plain functions only, so each template is spelled out for float and double.
#define DEFINE_LARS_MATH(T)                                                                                           \
  PER_INSTRUCTION_SET Squares squares(const T* weight, const T* gradient, T decay, int64_t count) {                   \
    return squares_body(weight, gradient, decay, count);                                                              \
  }                                                                                                                   \
  PER_INSTRUCTION_SET void update(T* weight, T* momentum, const T* gradient, const LarsFactors<T>& factors,           \
                                  bool adapted, T ratio, int64_t count) {                                             \
    update_body(weight, momentum, gradient, factors, adapted, ratio, count);                                          \
  }

DEFINE_LARS_MATH(float)
DEFINE_LARS_MATH(double)

}  // namespace

// Two passes: 7 words move per entry of an adapted tensor, 5 per entry of another one.
template <class T>
void lars_step(const Segments& segments, const std::vector<LarsTensor<T>>& tensors, const LarsSettings& settings) {
  const LarsFactors<T> factors(settings);
  std::vector<double> weight_shares(segments.slots()), update_shares(segments.slots());
  each_slot(segments, [&](int64_t number, const Slot& slot) {
    const LarsTensor<T>& tensor = tensors[slot.segment];
    if (!tensor.adapted) return;
    const int64_t at = slot.begin - segments.begin(slot.segment);
    const auto found = squares(tensor.weight + at, tensor.gradient + at, factors.weight_decay, slot.end - slot.begin);
    weight_shares[number] = found.weight;
    update_shares[number] = found.update;
  });
  std::vector<T> ratio(segments.count(), T{1});
  for (int64_t s = 0; s < segments.count(); ++s) {
    if (!tensors[s].adapted) continue;
    ratio[s] = lars_ratio<T>(settings.trust, sum_of_slots(segments, s, weight_shares.data()),
                             sum_of_slots(segments, s, update_shares.data()));
  }
  each_slot(segments, [&](int64_t, const Slot& slot) {
    const LarsTensor<T>& tensor = tensors[slot.segment];
    const int64_t at = slot.begin - segments.begin(slot.segment);
    update(tensor.weight + at, tensor.momentum + at, tensor.gradient + at, factors, tensor.adapted,
           ratio[slot.segment], slot.end - slot.begin);
  });
}

template void lars_step(const Segments&, const std::vector<LarsTensor<float>>&, const LarsSettings&);
template void lars_step(const Segments&, const std::vector<LarsTensor<double>>&, const LarsSettings&);

}  // namespace bissl_fast::cpu

// The CPU kernels of conjugate gradients and LARS against their definitions.
#include "cpu/krylov.h"

#include <vector>

#include "cpu/lars.h"
#include "vector_claims.h"

namespace {

namespace claims = bissl_fast::claims;
namespace cpu = bissl_fast::cpu;
using bissl_fast::Segments;

struct Kernels {
  template <class T>
  void dots(const Segments& segments, const std::vector<T>& a, const std::vector<T>& b, std::vector<T>& out) const {
    cpu::segment_dots(segments, a.data(), b.data(), out.data());
  }

  // The number of threads is PyTorch's; Python tests change it.
  template <class T>
  void cg_update(const Segments& segments, claims::Update<T>& u, bool) const {
    const T* scale = u.inverse_diagonal.empty() ? nullptr : u.inverse_diagonal.data();
    cpu::cg_update<T>(segments, {u.x.data(), u.r.data(), u.d.data(), u.q.data(), scale},
                      {u.rz.data(), u.curvature.data(), u.rz_next.data(), u.rr_next.data()});
  }

  template <class T>
  void lars_step(const Segments& segments, claims::Step<T>& step, const bissl_fast::LarsSettings& settings,
                 bool) const {
    std::vector<cpu::LarsTensor<T>> tensors;
    for (int64_t s = 0; s < segments.count(); ++s) {
      const int64_t at = segments.begin(s);
      tensors.push_back({step.weight.data() + at, step.momentum.data() + at, step.gradient.data() + at,
                         claims::is_adapted(s)});
    }
    cpu::lars_step(segments, tensors, settings);
  }
};

}  // namespace

int main() { return claims::check_all(Kernels{}); }

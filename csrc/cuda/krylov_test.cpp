// What the CUDA kernels of conjugate gradients and LARS compute, in loops on the host, against their definitions.
#include "cuda/krylov.h"

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/lars.h"
#include "vector_claims.h"

namespace {

namespace claims = bissl_fast::claims;
namespace cuda = bissl_fast::cuda;
using bissl_fast::Segments;

// Blocks and lanes come in no order, so first to last and last to first must give the same bits.
struct HostTeam {
  bool backwards;
  double* shared;

  template <class Work>
  void lanes(const Work& work) const {
    for (int lane = 0; lane < cuda::kTeam; ++lane) work(backwards ? cuda::kTeam - 1 - lane : lane);
  }
  double* sums(int which) const { return shared + which * cuda::kTeam; }
};

class HostEngine {
 public:
  explicit HostEngine(bool backwards) : backwards_(backwards) {}

  template <class Body>
  void teams(int64_t count, const Body& body) {
    for (int64_t k = 0; k < count; ++k) {
      std::vector<double> shared(cuda::kTeamSums * cuda::kTeam, std::numeric_limits<double>::quiet_NaN());
      body(HostTeam{backwards_, shared.data()}, backwards_ ? count - 1 - k : k);
    }
  }

  template <class T>
  T* scratch(int64_t count) {
    const size_t bytes = sizeof(T) * static_cast<size_t>(count);
    scratch_.push_back(std::make_unique<char[]>(bytes));
    std::memset(scratch_.back().get(), 0xff, bytes);  // NaN: what is read before it is written shows
    return reinterpret_cast<T*>(scratch_.back().get());
  }

 private:
  bool backwards_;
  std::vector<std::unique_ptr<char[]>> scratch_;
};

struct Kernels {
  template <class T>
  void dots(const Segments& segments, const std::vector<T>& a, const std::vector<T>& b, std::vector<T>& out) const {
    HostEngine engine(false);
    cuda::segment_dots(engine, segments, a.data(), b.data(), out.data());
  }

  template <class T>
  void cg_update(const Segments& segments, claims::Update<T>& u, bool backwards) const {
    HostEngine engine(backwards);
    cuda::Update<T> update{};
    update.x = u.x.data(), update.r = u.r.data(), update.d = u.d.data(), update.q = u.q.data();
    update.inverse_diagonal = u.inverse_diagonal.empty() ? nullptr : u.inverse_diagonal.data();
    update.rz = u.rz.data(), update.curvature = u.curvature.data();
    update.rz_next = u.rz_next.data(), update.rr_next = u.rr_next.data();
    cuda::cg_update(engine, segments, update);
  }

  template <class T>
  void lars_step(const Segments& segments, claims::Step<T>& step, const bissl_fast::LarsSettings& settings,
                 bool backwards) const {
    std::vector<cuda::LarsTensor<T>> tensors;
    for (int64_t s = 0; s < segments.count(); ++s) {
      const int64_t at = segments.begin(s);
      tensors.push_back({step.weight.data() + at, step.momentum.data() + at, step.gradient.data() + at,
                         claims::is_adapted(s)});
    }
    HostEngine engine(backwards);
    cuda::lars_step(engine, segments, tensors.data(), settings);
  }
};

}  // namespace

int main() { return claims::check_all(Kernels{}); }

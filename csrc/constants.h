// What every device's contrastive kernels agree on. The maths is in docs/kernels.md, the contract in ops/schemas.py.
#pragma once

namespace bissl_fast {

// The epsilon of torch.nn.functional.normalize: a row is divided by max(norm, kNormEps).
inline constexpr double kNormEps = 1e-12;

}  // namespace bissl_fast

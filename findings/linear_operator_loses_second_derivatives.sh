#!/usr/bin/env bash
# One would guess: what linear_operator (under GPyTorch) differentiates once rightly and with a graph, it does twice.
# What happens: products with the Hessian through inv_quad, sqrt_inv_matmul and the solve of a Kronecker product are wrong,
# without an error, in float64; their values and gradients are right, and so is all of solve and inv_quad_logdet.
# Whom it costs: Hessian-vector products, implicit gradients and Newton steps through a Gaussian process or its kernels.
# Versions: linear_operator 0.6.1, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet linear_operator==0.6.1 torch==2.14.1 numpy==2.4.6 scipy==1.17.1
"$folder/env/bin/python" -W ignore - <<'EOF'
import linear_operator
import torch
from linear_operator.operators import KroneckerProductLinearOperator

print("linear_operator", linear_operator.__version__, "torch", torch.__version__)
torch.set_default_dtype(torch.float64)
solved = torch.linalg.solve
generator = torch.Generator().manual_seed(0)
x, v = torch.randn(4, 4, generator=generator), torch.randn(4, 4, generator=generator)
b, c = torch.randn(4, 1, generator=generator), torch.randn(16, 1, generator=generator)


def matrix(x):
    return x @ x.T + torch.eye(4)


def operator(x):
    return linear_operator.to_linear_operator(matrix(x))


def root(x):
    values, vectors = torch.linalg.eigh(matrix(x))
    return vectors @ (values.rsqrt()[:, None] * (vectors.T @ b))


def derivatives(loss, x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    return gradient.detach(), torch.autograd.grad((gradient * v).sum(), x)[0]


cases = {  # theirs, the same by hand, whether the second derivative is right
    "solve": (lambda x: operator(x).solve(b).square().sum(), lambda x: solved(matrix(x), b).square().sum(), True),
    "inv_quad": (lambda x: operator(x).inv_quad(b), lambda x: (b * solved(matrix(x), b)).sum(), False),
    "sqrt_inv_matmul": (lambda x: operator(x).sqrt_inv_matmul(b).pow(3).sum(), lambda x: root(x).pow(3).sum(), False),
    "Kronecker solve": (
        lambda x: KroneckerProductLinearOperator(operator(x), operator(x)).solve(c).square().sum(),
        lambda x: solved(torch.kron(matrix(x), matrix(x)), c).square().sum(),
        False,
    ),
}
for name, (theirs, by_hand, is_right) in cases.items():
    (gradient, product), (expected_gradient, expected) = derivatives(theirs, x), derivatives(by_hand, x)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)
    print(f"{name}: gradient right; product expected {expected[0].tolist()}, seen {product[0].tolist()}")
    assert torch.allclose(product, expected, rtol=1e-4, atol=1e-6) == is_right, "the behaviour has changed"
EOF

"""Products beside curvlinops, hypergradients beside torchopt. `make peer` installs both."""

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector, conjugate_gradient, implicit_gradient

pytestmark = pytest.mark.peer


def regression() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return network, torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["reverse", "linearized"])
def test_hessian_products_equal_those_of_curvlinops(mode: str) -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="the extra `peer` is not installed")
    network, x, y = regression()
    criterion = nn.MSELoss()
    theta = ParameterVector(network)
    ours = HessianOperator(lambda m, b: criterion(m(b[0]), b[1]), theta, [(x, y), (x[:5], y[:5])], mode)  # type: ignore[arg-type]
    v = torch.randn(len(theta), dtype=torch.float64)
    found = ours.matvec(v)
    expected = torch.zeros_like(v)
    for data in ((x, y), (x[:5], y[:5])):
        named = dict(network.named_parameters())
        try:
            theirs = curvlinops.HessianLinearOperator(network, criterion, named, [data], check_deterministic=False)
            expected += torch.as_tensor(theirs @ v) / 2
        except (TypeError, AttributeError):  # versions before named parameters
            parameters = list(network.parameters())
            theirs = curvlinops.HessianLinearOperator(network, criterion, parameters, [data], check_deterministic=False)
            expected += torch.as_tensor(theirs @ v) / 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_the_implicit_gradient_of_a_proximal_problem_equals_that_of_torchopt() -> None:
    torchopt = pytest.importorskip("torchopt", reason="the extra `peer` is not installed")
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    upper = torch.randn(5, generator=generator, dtype=torch.float64)
    weight = 0.7
    hessian = root.T @ root / 12

    def stationarity(theta_p: torch.Tensor, theta_d: torch.Tensor) -> torch.Tensor:
        return hessian @ theta_p - root.T @ target / 12 + weight * (theta_p - theta_d)

    solve = torchopt.linear_solve.solve_normal_cg(maxiter=50, atol=0, rtol=1e-14)

    @torchopt.diff.implicit.custom_root(stationarity, argnums=1, solve=solve)
    def lower(theta_p: torch.Tensor, theta_d: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(5, dtype=torch.float64)
        return torch.linalg.solve(hessian + weight * eye, root.T @ target / 12 + weight * theta_d).detach()

    theta_d = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(lower(torch.zeros(5, dtype=torch.float64), theta_d) @ upper, theta_d)
    module = nn.ParameterDict({"w": nn.Parameter(torch.zeros(5, dtype=torch.float64))})
    ours = HessianOperator(
        lambda m, b: (b[0] @ m["w"] - b[1]).square().mean() / 2, ParameterVector(module), [(root, target)]
    )
    found = implicit_gradient(ours, upper, weight, solver=conjugate_gradient, iterations=8).x
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)

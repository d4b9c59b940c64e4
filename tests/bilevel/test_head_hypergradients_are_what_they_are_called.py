"""Each estimator of a head's hypergradient against what it is exact for: differences, autograd, dense matrices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bissl_fast.bilevel.hypergradients.head import BIAS, HeadHypergradient, InnerLoss, InnerProblem
from bissl_fast.bilevel.hypergradients.head_solution import converge, relative_gradient
from bissl_fast.training.supervised import downstream_loss

RATE, STEPS, RIDGE = 0.3, 4, 0.2
IMAGES, FEATURES, CLASSES = 7, 3, 4
LENGTH = CLASSES * (FEATURES + 1)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(phi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    weight = phi[: CLASSES * FEATURES].view(CLASSES, FEATURES)
    return features @ weight.T + phi[CLASSES * FEATURES :]


def softmax_loss(seed: int) -> InnerLoss:
    labels = torch.arange(IMAGES).roll(seed) % CLASSES
    return lambda phi, features: downstream_loss(scores(phi, features), labels)


def logistic_loss(seed: int) -> InnerLoss:
    targets = (drawn(IMAGES, CLASSES, seed=90 + seed) * 2).round().clamp(-1, 1)
    return lambda phi, features: downstream_loss(scores(phi, features), targets)


def encode(theta: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Features ``(B, D)`` of a small nonlinear encoder."""
    return torch.tanh(images @ theta.view(5, FEATURES)) * 2


THETA, TRAINING, VALIDATION = drawn(15, seed=1), drawn(IMAGES, 5, seed=2), drawn(IMAGES, 5, seed=3)
START = 0.3 * drawn(LENGTH, seed=4)


def hypergradient(
    head: HeadHypergradient, inner: InnerLoss, outer: InnerLoss, start: torch.Tensor, ridge: float = 0.0
) -> torch.Tensor:
    """d/dθ of L_outer(θ, φ(θ)) as ABRL takes it."""
    theta = THETA.clone().requires_grad_()
    features = encode(theta, TRAINING)
    problem = InnerProblem(inner, features, ridge)
    path = head.inner_loop(problem, start)
    end = path[-1].clone().requires_grad_()
    direct, v = torch.autograd.grad(outer(end, encode(theta, VALIDATION)), [theta, end])
    features.backward(head.pull_back(problem, path, v).cotangent)
    assert theta.grad is not None
    return direct + theta.grad


def central_differences(value: Callable[[torch.Tensor], torch.Tensor], step: float = 1e-5) -> torch.Tensor:
    steps = step * torch.eye(len(THETA), dtype=torch.float64)
    return torch.stack([(value(THETA + s) - value(THETA - s)) / (2 * step) for s in steps])


def least_squares(seed: int) -> InnerLoss:
    wanted = drawn(IMAGES, seed=seed)
    return lambda phi, features: 0.5 * (features @ phi - wanted).square().mean()


def test_converged_equals_differences_of_the_outer_loss_at_the_closed_form_of_ridge_least_squares() -> None:
    inner, outer, wanted = least_squares(5), least_squares(6), drawn(IMAGES, seed=5)

    def outer_at_the_solution(theta: torch.Tensor) -> torch.Tensor:
        z = encode(theta, TRAINING)
        normal = z.T @ z / IMAGES + RIDGE * torch.eye(FEATURES, dtype=torch.float64)
        return outer(torch.linalg.solve(normal, z.T @ wanted / IMAGES), encode(theta, VALIDATION))

    found = hypergradient(HeadHypergradient("converged"), inner, outer, torch.zeros(FEATURES).double(), RIDGE)
    torch.testing.assert_close(found, central_differences(outer_at_the_solution), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", [softmax_loss, logistic_loss])
def test_converged_equals_differences_through_a_classifier_solved_anew(loss: Callable[[int], InnerLoss]) -> None:
    inner, outer = loss(0), loss(1)

    def outer_at_the_solution(theta: torch.Tensor) -> torch.Tensor:
        problem = InnerProblem(inner, encode(theta, TRAINING), RIDGE)
        return outer(converge(problem, torch.zeros(LENGTH).double()), encode(theta, VALIDATION))

    found = hypergradient(HeadHypergradient("converged"), inner, outer, START, RIDGE)
    torch.testing.assert_close(found, central_differences(outer_at_the_solution), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", [softmax_loss, logistic_loss])
def test_unrolled_equals_differences_of_the_map_of_k_steps(loss: Callable[[int], InnerLoss]) -> None:
    inner, outer, head = loss(0), loss(1), HeadHypergradient("unrolled", STEPS, RATE)

    def outer_after_k_steps(theta: torch.Tensor) -> torch.Tensor:
        return outer(head.descend(InnerProblem(inner, encode(theta, TRAINING)), START)[-1], encode(theta, VALIDATION))

    found = hypergradient(head, inner, outer, START)
    torch.testing.assert_close(found, central_differences(outer_after_k_steps), rtol=1e-7, atol=1e-9)


def test_the_estimators_differ_on_a_parabola_by_the_numbers_of_their_formulas() -> None:
    h, a, rate, steps = 2.0, 3.0, 0.001, 5

    def parabola(phi: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return (0.5 * h * (phi - a * theta) ** 2).sum()

    def slope(head: HeadHypergradient, ridge: float = 0.0) -> float:
        problem = InnerProblem(parabola, torch.full((1, 1), 0.7).double(), ridge)
        path = head.inner_loop(problem, torch.full((1,), 0.4).double())
        return float(head.pull_back(problem, path, torch.ones(1).double()).cotangent) / a

    unrolled = 1 - (1 - rate * h) ** steps
    assert slope(HeadHypergradient("ift", steps, rate, damping=0.0)) == pytest.approx(1, rel=1e-12)
    assert slope(HeadHypergradient("ift", steps, rate, damping=1.0)) == pytest.approx(h / (h + 1), rel=1e-12)
    assert slope(HeadHypergradient("unrolled", steps, rate)) == pytest.approx(unrolled, rel=1e-12)
    assert slope(HeadHypergradient("neumann", steps, rate)) == pytest.approx(unrolled, rel=1e-12)
    proximal = h / (h + 1 / (rate * steps))
    assert slope(HeadHypergradient("proximal", steps, rate)) == pytest.approx(proximal, rel=1e-12)
    assert slope(HeadHypergradient("converged", steps, rate), 0.5) == pytest.approx(h / (h + 0.5), rel=1e-12)
    assert unrolled == pytest.approx(0.00996, abs=1e-5)  # a hundredth of what the implicit function theorem says


class Dense:
    """H ``(L, L)`` and the mixed block ``(B·D, L)`` of a loss, written out."""

    def __init__(self, loss: InnerLoss, phi: torch.Tensor, features: torch.Tensor) -> None:
        autograd: Any = torch.autograd.functional
        self.hessian = autograd.hessian(lambda p: loss(p, features), phi)
        z = features.clone().requires_grad_()

        def slope(p: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(loss(p, z), z, create_graph=True)[0].flatten()

        self.mixed = autograd.jacobian(slope, phi)


def dense_pullback(name: str, inner: InnerLoss, path: list[torch.Tensor], z: torch.Tensor, v: torch.Tensor) -> Any:
    eye = torch.eye(LENGTH, dtype=torch.float64)
    last = Dense(inner, path[-1], z)
    if name == "unrolled":
        total = torch.zeros(z.numel()).double()
        for phi in path[-2::-1]:
            at = Dense(inner, phi, z)
            total, v = total - RATE * at.mixed @ v, v - RATE * at.hessian @ v
        return total.view_as(z)
    if name == "neumann":
        step = eye - RATE * last.hessian
        inverse = RATE * sum(torch.linalg.matrix_power(step, j) for j in range(STEPS))
    else:
        weight = {"ift": 0.7, "proximal": 1 / (RATE * STEPS), "converged": RIDGE}[name]
        inverse = torch.linalg.inv(last.hessian + weight * eye)
    return -(last.mixed @ inverse @ v).view_as(z)


@pytest.mark.parametrize("name", BIAS)
@pytest.mark.parametrize("loss", [softmax_loss, logistic_loss])
def test_every_estimator_equals_its_formula_in_dense_matrices(name: Any, loss: Callable[[int], InnerLoss]) -> None:
    inner, z, v = loss(0), encode(THETA, TRAINING), drawn(LENGTH, seed=8)
    head = HeadHypergradient(name, STEPS, RATE, damping=0.7, iterations=LENGTH + 4)
    problem = InnerProblem(inner, z, RIDGE if name == "converged" else 0.0)
    path = head.inner_loop(problem, START)
    found = head.pull_back(problem, path, v)
    torch.testing.assert_close(found.cotangent, dense_pullback(name, inner, path, z, v), rtol=1e-8, atol=1e-10)
    assert found.residual is None if name == "unrolled" else torch.isfinite(torch.as_tensor(found.residual))


def test_one_product_has_a_hessian_column_and_a_mixed_column_and_unrolling_takes_k_of_them() -> None:
    inner, z = softmax_loss(0), encode(THETA, TRAINING)
    problem, dense, v = InnerProblem(inner, z), Dense(inner, START, z), drawn(LENGTH, seed=8)
    curved, mixed = problem.at(START).product(v)
    torch.testing.assert_close(curved, dense.hessian @ v)
    torch.testing.assert_close(mixed.flatten(), dense.mixed @ v)
    head = HeadHypergradient("unrolled", STEPS, RATE)
    head.pull_back(problem, head.inner_loop(problem, START), v)
    assert problem.products == 1 + STEPS


def test_the_hessian_of_a_softmax_head_is_singular_in_as_many_directions_as_a_class_has_weights_and_one() -> None:
    values = torch.linalg.eigvalsh(Dense(softmax_loss(0), START, encode(THETA, TRAINING)).hessian)
    assert int((values < 1e-12).sum()) == FEATURES + 1
    assert values[FEATURES + 1] > 1e-6


def small_encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, FEATURES, 3, stride=2, bias=False),
        nn.BatchNorm2d(FEATURES),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()


def test_unrolled_equals_autograd_through_the_steps_of_a_head_on_convolutions_with_batch_norms() -> None:
    encoder, images, others = small_encoder(), drawn(IMAGES, 1, 8, 8, seed=11), drawn(IMAGES, 1, 8, 8, seed=12)
    inner, outer = softmax_loss(0), softmax_loss(1)
    phi = START.clone().requires_grad_()
    features = encoder(images)
    for _ in range(STEPS):
        (gradient,) = torch.autograd.grad(inner(phi, features), phi, create_graph=True)
        phi = phi - RATE * gradient
    expected = torch.autograd.grad(outer(phi, encoder(others)), list(encoder.parameters()))

    features = encoder(images)
    head, problem = HeadHypergradient("unrolled", STEPS, RATE), InnerProblem(inner, features)
    path = head.inner_loop(problem, START)
    end = path[-1].requires_grad_()
    outer(end, encoder(others)).backward()
    assert end.grad is not None
    before = [p.grad.clone() for p in encoder.parameters()]
    features.backward(head.pull_back(problem, [p.detach() for p in path], end.grad).cotangent)
    for parameter, direct, wanted in zip(encoder.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(direct, wanted, rtol=1e-3)  # so that the implicit term is seen to be there


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 2e-3)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_head_is_converged_to_the_precision_of_its_dtype(dtype: torch.dtype, bound: float, scale: float) -> None:
    problem = InnerProblem(softmax_loss(0), (scale * encode(THETA, TRAINING)).to(dtype), 1e-3)
    phi = converge(problem, (30 * START).to(dtype))
    assert relative_gradient(problem, phi, problem.gradient(phi)) < bound
    lower = F.cross_entropy(scores(phi, problem.features), torch.arange(IMAGES) % CLASSES)
    assert lower < 1.3 / scale


def test_a_head_without_a_ridge_is_not_converged_but_refused() -> None:
    problem = InnerProblem(softmax_loss(0), encode(THETA, TRAINING))
    with pytest.raises(ValueError, match=r"positive ridge only, found 0\.0"):
        converge(problem, START)


def test_the_pages_sentences_name_every_estimator() -> None:
    assert set(BIAS) == {"ift", "unrolled", "neumann", "proximal", "converged"}

"""Vector work of one conjugate-gradient iteration, and one LARS step, on a network's tensors, beside loops over them.

python -m benchmarks.vector_work [FILE.json]     # ResNet-18: 60 tensors, 11.2 M entries; float32

Five iterations in a row, as a solve of BiSSL has; the product ``A d`` is given and not timed. Contenders take turns in
every round, so that a busy moment hits all of them alike; the shortest time counts. A loop's first answer is compared
with the kernels'.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone

import timm
import torch
from torch import Tensor

from bissl_fast.ops import cg_update, lars_step
from bissl_fast.ops.lars import LarsSettings, reference
from bissl_fast.training.environment import processor

ITERATIONS = 5
WORDS = {"cg": 10, "lars": 7}  # words that the kernels' passes move per entry (docs/krylov.md)
SETTINGS = LarsSettings(lr=0.1, weight_decay=1e-4, momentum=0.9, trust_coefficient=1e-3, exclude_1d=True)


def shapes() -> list[torch.Size]:
    """Of ResNet-18's backbone."""
    return [p.shape for p in timm.create_model("resnet18", num_classes=0).parameters()]


class Iteration:
    """The state of layer-wise conjugate gradients: x, r, d and q = A d, flat, and as a tensor per parameter."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shapes = shapes()
        self.segments = [shape.numel() for shape in self.shapes]
        length = sum(self.segments)
        self.start = [torch.randn(length, generator=generator) for _ in range(3)]
        self.start.append(2 * self.start[2] + 0.3 * torch.randn(length, generator=generator))
        self.flat = [t.clone() for t in self.start]
        self.rr = torch.stack([torch.dot(r, r) for r in self.start[1].split(self.segments)])
        self.tensors = [self.cut(t) for t in self.start]
        self.reset()

    def cut(self, flat: Tensor) -> list[Tensor]:
        """A vector as tensors of the parameters' shapes, each with memory of its own."""
        parts = zip(flat.split(self.segments), self.shapes, strict=True)
        return [part.view(shape).clone() for part, shape in parts]

    def reset(self) -> None:
        """Back to the first state."""
        for flat, tensors, start in zip(self.flat, self.tensors, self.start, strict=True):
            flat.copy_(start)
            tensors[:] = self.cut(start)

    def kernels(self) -> None:
        """One call, step lengths per tensor."""
        cg_update(*self.flat, self.rr, self.segments)

    def kernels_joint(self) -> None:
        """One call, one step length for all."""
        cg_update(*self.flat, self.rr.sum().reshape(1), [sum(self.segments)])

    def loop(self) -> None:
        """Tensor by tensor, as in the code released with the papers: every result is a new tensor."""
        x, r, d, q = self.tensors
        alpha = [rr / torch.sum(a * b) for rr, a, b in zip(self.rr, d, q, strict=True)]
        x[:] = [a.add(b.mul(k)) for a, b, k in zip(x, d, alpha, strict=True)]
        r[:] = [a.sub(b.mul(k)) for a, b, k in zip(r, q, alpha, strict=True)]
        beta = [torch.sum(a * a) / rr for a, rr in zip(r, self.rr, strict=True)]
        d[:] = [a.add(b.mul(k)) for a, b, k in zip(r, d, beta, strict=True)]

    def loop_in_place(self) -> None:
        """Tensor by tensor, as sparing as PyTorch's own functions can be."""
        x, r, d, q = ([t.view(-1) for t in tensors] for tensors in self.tensors)
        alpha = self.rr / torch.stack([torch.dot(a, b) for a, b in zip(d, q, strict=True)])
        for a, b, k in zip(x, d, alpha.unbind(), strict=True):
            a.addcmul_(b, k)
        for a, b, k in zip(r, q, alpha.neg().unbind(), strict=True):
            a.addcmul_(b, k)
        beta = torch.stack([torch.dot(a, a) for a in r]) / self.rr
        for a, b, k in zip(d, r, beta.unbind(), strict=True):
            a.mul_(k).add_(b)

    def check(self) -> None:
        """Raise unless all three give one answer."""
        answers = []
        for call in (self.kernels, self.loop, self.loop_in_place):
            self.reset()
            call()
            vectors = self.flat[:3] if call == self.kernels else self.tensors[:3]
            answers.append(
                [v.clone() if isinstance(v, Tensor) else torch.cat([t.view(-1) for t in v]) for v in vectors]
            )
        for answer in answers[1:]:
            for found, expected in zip(answer, answers[0], strict=True):
                assert (found - expected).norm() <= 1e-4 * expected.norm()


class Step:
    """Weights, momenta and gradients of a LARS step."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lists = [[torch.randn(shape, generator=generator) for shape in shapes()] for _ in range(3)]

    def kernels(self) -> None:
        """One call for all tensors."""
        lars_step(*self.lists, SETTINGS)

    def loop(self) -> None:
        """Tensor by tensor."""
        for trio in zip(*self.lists, strict=True):
            reference.lars_step(*trio, SETTINGS)


Call = Callable[[], object]


def shortest(calls: dict[str, Call], rounds: int, reset: Call = lambda: None) -> dict[str, float]:
    """Seconds of each call, in turns after one round to warm up."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(-1, rounds):
        for name, call in calls.items():
            reset()
            start = time.perf_counter()
            for _ in range(ITERATIONS):
                call()
            if turn >= 0:
                best[name] = min(best[name], (time.perf_counter() - start) / ITERATIONS)
    return best


def measure(rounds: int = 15) -> dict[str, object]:
    """Milliseconds, how many times longer the loops take, and the share of this machine's memory rate."""
    iteration, step = Iteration(), Step()
    iteration.check()
    x, r, *_ = iteration.flat
    iteration_calls = {
        "kernels, layer-wise": iteration.kernels,
        "kernels, joint": iteration.kernels_joint,
        "loop": iteration.loop,
        "loop in place": iteration.loop_in_place,
        "": lambda: x.add_(r),
    }
    times = {
        "cg": shortest(iteration_calls, rounds, iteration.reset),
        "lars": shortest({"kernels": step.kernels, "loop": step.loop}, rounds),
    }
    rate = 3 * 4 * x.numel() / times["cg"].pop("")  # bytes per second of the plainest update there is
    record: dict[str, object] = {"tensors": len(iteration.segments), "entries": x.numel()}
    for subject, found in times.items():
        ours = next(iter(found.values()))
        record[subject] = {
            "ms": {name: round(1e3 * seconds, 2) for name, seconds in found.items()},
            "times ours": {name: round(s / ours, 2) for name, s in found.items() if name.startswith("loop")},
            "GB/s": round(WORDS[subject] * 4 * x.numel() / ours / 1e9, 1),
            "share of the memory rate": round(WORDS[subject] * 4 * x.numel() / ours / rate, 2),
        }
    record["memory rate, GB/s (x += y)"] = round(rate / 1e9, 1)
    return record


def main(file: str | None = None) -> None:
    """Measure, print, keep."""
    record = measure()
    record["machine"] = f"{torch.get_num_threads()} threads of {processor()}, torch {torch.__version__}"
    record["date"] = str(datetime.now(timezone.utc).date())
    record["seed"] = 0
    text = json.dumps(record, indent=2)
    print(text)
    if file is not None:
        with open(file, "w", encoding="utf-8") as target:
            target.write(text + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:2])

"""Vector work of conjugate gradients and LARS beside loops over tensors.

pytest benchmarks/test_krylov.py --benchmark-group-by=group     # every call as pytest-benchmark sees it
python -m benchmarks.vector_work                                # in turns, with ratios and the share of the memory rate
"""

import pytest

from benchmarks.vector_work import Iteration, Step

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("call", ["kernels", "kernels_joint", "loop", "loop_in_place"])
def test_time_of_an_iteration(benchmark, call: str) -> None:
    iteration = Iteration()
    iteration.check()
    benchmark.group = "conjugate gradients, ResNet-18"
    benchmark.pedantic(getattr(iteration, call), setup=iteration.reset, rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("call", ["kernels", "loop"])
def test_time_of_a_lars_step(benchmark, call: str) -> None:
    step = Step()
    benchmark.group = "LARS, ResNet-18"
    benchmark.pedantic(getattr(step, call), rounds=10, warmup_rounds=1)

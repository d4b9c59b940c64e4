"""Of whatever is damaged in a file, a reader gives data or a sentence; of odd arguments, an op a result or a refusal.

A few inputs a target, drawn by Hypothesis from a fixed seed; `scripts/fuzz.py` tries a million.
"""

import random
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import mutated
from tests.fuzz.op_targets import OPS
from tests.fuzz.targets import Planted, Target, every

FEW = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
NUMBERS = st.integers(0, 2**64)
QUICK = [target for target in every() if target.share == 1]
SLOW = [target for target in every() if 0.01 < target.share < 1]


@pytest.mark.parametrize("target", [*QUICK, *SLOW], ids=lambda target: target.name)
def test_a_reader_gives_data_or_a_sentence(target: Target, tmp_path: Path) -> None:
    planted = Planted(target, tmp_path / "tree")

    @seed(zlib.crc32(target.name.encode()))
    @settings(FEW, max_examples=25 if target.share == 1 else 5)
    @given(NUMBERS)
    def holds(number: int) -> None:
        planted.read(*planted.damage(random.Random(number)))

    holds()


@pytest.mark.filterwarnings("ignore:The contrastive losses run on plain PyTorch")
@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_what_plain_pytorch_gives_or_refuses(name: str) -> None:
    @seed(zlib.crc32(name.encode()))
    @FEW
    @given(NUMBERS)
    def holds(number: int) -> None:
        OPS[name](random.Random(number))

    holds()


def test_the_same_number_is_the_same_damage_and_most_numbers_damage_something() -> None:
    whole = b'{"step": 3, "values": [1, 2, {"a": null}]}' * 3
    made = [mutated(whole, random.Random(number)) for number in range(300)]
    assert made == [mutated(whole, random.Random(number)) for number in range(300)]
    assert len(set(made) - {whole}) > 250


def test_a_reader_that_breaks_its_promise_is_seen(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        if path.read_bytes() != b"whole":
            raise KeyError("step")

    target = Target("bad", lambda root: (root / "a").write_bytes(b"whole"), read, ("a",), by_file=True)
    planted = Planted(target, tmp_path / "tree")
    assert planted.read(tmp_path / "tree" / "a", b"whole")
    with pytest.raises(KeyError):
        planted.read(tmp_path / "tree" / "a", b"hole")
    assert (tmp_path / "tree" / "a").read_bytes() == b"whole"

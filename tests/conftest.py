"""Fixtures that several rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import Processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute in one piece begins first: at the end, all cores but one would wait for it."""
    items.sort(key=lambda item: not item.path.name.startswith("test_triton_"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, or a skip that says where they were looked for."""
    folder = Path(os.environ.get("BISSL_FAST_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set BISSL_FAST_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Two processes of one gloo group, started once for all tests that run on them."""
    processes = Processes(tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.stop()


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Four of them, for slow tests."""
    processes = Processes(tmp_path_factory.mktemp("ranks"), 4, 1200.0)
    yield processes
    processes.stop()

"""What scripts/gpu/slice.sh runs needs no package but those that a machine with a GPU has, or is brought."""

import ast
import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
THERE = {"torch", "triton", "numpy", "pytest", "torchvision", "timm", "PIL", "yaml", "rich", "nvidia"}
FILES = [path for path in sorted(TESTS.rglob("test_*.py")) if re.search(r"\bmark\.gpu\b", path.read_text())]


def imported(path: Path, seen: set[Path]) -> set[str]:
    """Packages that a test file imports as it is collected, with those of the modules of ``tests`` that it takes."""
    seen.add(path)
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = set()
    for name in names:
        roots = (TESTS.parent, path.parent)
        files = [root.joinpath(*name.split(".")).with_suffix(".py") for root in roots]
        ours = [file for file in files if file.is_relative_to(TESTS) and file.exists()]
        for other in ours:
            packages |= imported(other, seen) if other not in seen else set()
        first = name.split(".")[0]
        packages |= set() if (path.parent / f"{first}.py").exists() else {first}
    return packages - {"tests", "bissl_fast", "benchmarks", ""}


def test_there_are_such_files() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_with_gpu_tests_imports_what_is_there(path: Path) -> None:
    assert imported(path, set()) - sys.stdlib_module_names <= THERE

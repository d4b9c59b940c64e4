"""What a release carries along: licences of all that it needs, and wheels that are the same wherever they are built."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_licence_of_everything_that_is_needed_is_listed() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    own = project[project.index("\ndependencies") : project.index("[project.optional")]
    needed = re.findall(r'^  "([a-z0-9-]+)', own, re.M)
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.M))
    assert len(needed) > 10
    assert set(needed) <= listed.keys()
    assert all(listed[name].strip() and "not told" not in listed[name] for name in needed)


@pytest.mark.slow
def test_two_builds_in_two_folders_are_one_wheel(tmp_path: Path) -> None:
    """Of Python alone; `scripts/wheels.sh` compares those with native code, whose compilation takes minutes."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    made = []
    for folder in (tmp_path / "one", tmp_path / "elsewhere" / "and" / "deeper"):
        for name in filter(None, files.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        settings = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "BISSL_FAST_NATIVE": "0"}
        subprocess.run([*command, "--wheel-dir", str(folder / "out"), str(folder)], env=settings, check=True)
        made += (folder / "out").glob("*.whl")
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in made)
    assert first == second
    with zipfile.ZipFile(made[0]) as wheel:
        assert "bissl_fast/py.typed" in wheel.namelist()
        assert not any(name.startswith(("tests/", "scripts/")) for name in wheel.namelist())

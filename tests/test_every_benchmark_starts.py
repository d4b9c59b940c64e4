"""Each file of benchmarks/ runs as its first lines say: `python -m benchmarks.NAME` in the repository's root."""

from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_is_found_with_all_that_it_imports(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    import_module(f"benchmarks.{name}")
    others = {path.stem for path in FOLDER.glob("*.py")}
    for line in source.splitlines():
        words = line.split()
        assert not (words[:1] == ["from"] and words[1] in others), f"only found beside it: {line}"
    if "__main__" in source:
        assert "python benchmarks/" not in source
        assert f"python -m benchmarks.{name} " in source


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if "parse_args" in path.read_text()))
def test_it_says_what_it_can_be_asked(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out

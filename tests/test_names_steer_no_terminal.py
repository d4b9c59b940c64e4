"""Names that a stranger has chosen reach a terminal as text: no escape sequence, no turned line, no second line."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bissl_fast.cli import main
from bissl_fast.data.sets.catalogue import load_downstream
from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.export.card import code
from bissl_fast.plain import shown
from bissl_fast.training.console import say
from tests.methods.conftest import write_images

RED, TURNED = "\x1b[31mred\x07", "\u202egnp"


def test_characters_that_steer_are_written_out_and_all_others_stay() -> None:
    assert shown(f"{RED}\r{TURNED}\x9b2J") == "\\x1b[31mred\\x07\\r\\u202egnp\\x9b2J"
    usual = "Blätter, 葉, 👩‍🔬 20.0\u202f%\n\tnext"
    assert shown(usual) == usual
    assert shown("\udcffleaf") == "\\udcffleaf"  # a byte of a file name that is no UTF-8, which cannot be printed
    assert printable("\udcffleaf \ud95d") == "\ufffdleaf \ufffd"  # and half a character, as JSON can hold
    assert printable("two\nlines\tand a tab") == "two\\nlines\\tand a tab"


def test_what_is_told_and_what_stands_in_a_table_steers_nothing() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100)
    say(console, f"left out: {RED}")
    console.print(Grid(("Arm", RED), ((Cell(RED), Cell(TURNED)),), RED).to_rich())
    assert "left out: \\x1b[31mred\\x07\n" in file.getvalue()
    assert not {"\x1b", "\x07", "\u202e"} & set(file.getvalue())


def test_an_error_names_a_file_without_its_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / RED)]) == 2
    told = capsys.readouterr().err
    assert "\\x1b[31mred" in told
    assert "\x1b" not in told


def test_a_folders_classes_and_unreadable_files_are_named_in_one_line(tmp_path: Path) -> None:
    for number, name in enumerate((RED, "two\nlines", TURNED)):
        write_images(tmp_path / name, 10, number, number)
        (tmp_path / name / f"{RED}\nbroken.png").write_bytes(b"no image")
    splits = load_downstream(f"folder:{tmp_path}", None, 16, tmp_path.parent / "cache")
    names = [*splits.train.classes, *splits.notes, *splits.train.skipped, *splits.test.skipped]
    assert len(names) > 4
    assert not {"\x1b", "\x07", "\n", "\u202e"} & set("".join(names))


def test_a_model_card_shows_names_as_they_are_written() -> None:
    assert code(RED) == "`\\x1b[31mred\\x07`"
    assert code("a |\n`b`") == "`` a | `b` ``"

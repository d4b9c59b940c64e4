"""The order of the house: a room imports only rooms below it, and its import stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx

import bissl_fast

PACKAGE = Path(bissl_fast.__file__).parent
ROOMS = (
    "cli",
    "export",
    "experiments",
    "methods",
    "measuring",
    "evaluation",
    "training",
    "pretext",
    "data",
    "models",
    "bilevel",
    "ops",
)
EVERYWHERE = ("errors", "plain", "version", "_C")


def imported_rooms(path: Path) -> set[str]:
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("bissl_fast.")}


def test_every_room_imports_only_itself_and_rooms_below() -> None:
    checked = 0
    for height, room in enumerate(ROOMS):
        for path in (PACKAGE / room).rglob("*.py"):
            above = imported_rooms(path) - set(ROOMS[height:]) - set(EVERYWHERE)
            assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)}"
            checked += 1
    assert checked > 50


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert folders == set(ROOMS)


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = ("timm", "torchvision", "sklearn", "scipy", "matplotlib", "tensorboard", "triton", "nvidia.dali", "torch")
    code = f"import sys, bissl_fast; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_shop_window_holds_what_it_shows() -> None:
    for name in bissl_fast.__all__:
        assert getattr(bissl_fast, name) is not None, name
    assert set(bissl_fast.__all__) <= set(dir(bissl_fast))


def test_no_file_is_reached_from_what_it_imports() -> None:
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = nx.DiGraph((name, target) for name, path in files.items() for target in imported_files(path, set(files)))
    assert graph.number_of_edges() > 300
    assert not list(nx.simple_cycles(graph))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_files(path: Path, known: set[str]) -> set[str]:
    """Files that a file imports, inside functions, too; not the packages that only hold them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= named if named else {node.module} & known
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
    return found

"""The layers of the package, and the names that say nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "brainseg"
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = "commands"
# From the bottom up. A part imports from the parts below it and from itself, and a command also
# from other commands.
LAYERS = (
    {"core", "weights"},
    {"config"},
    {"data", "models", "device"},
    {"evaluation"},
    {"tracking"},
    {"training", "reports"},
    {"runs"},
    {"comparison", "prediction", "sweeps", "tuning"},
    {"cli"},
    {COMMANDS},
)
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
# A reader cannot guess what these hold, and nobody can search for them. A name is the noun that it
# holds.
VALUES = """one found own given its said wanted asked kept shown further others known made there before
    away held told taken whole fine right least aside several alike apart what who"""
FUNCTIONS = "sent done saw dealt here alone how some met short"
SAY_NOTHING = set(VALUES.split())
SAY_NOTHING_OF_FUNCTIONS = SAY_NOTHING | set(FUNCTIONS.split())
ALLOWED: set[tuple[str, str]] = set()


def part_of(module: str) -> str:
    """Return the part of the package that a dotted module name belongs to."""
    name = module.split(".")[1]
    return name if name in HEIGHT else COMMANDS


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules of this package that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brainseg"):
            names = [node.module or ""]
            if node.module == "brainseg":
                names = [f"brainseg.{alias.name}" for alias in node.names]
            for name in names:
                if name != "brainseg.__version__":
                    yield name, node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        # The package's own names are imported on first use, from wherever they lie.
        return
    own = part_of(
        f"brainseg.{path.relative_to(PACKAGE).with_suffix('').as_posix()}".replace("/", ".")
    )
    for name, line in imported(path):
        target = part_of(name)
        assert target == own or HEIGHT[target] < HEIGHT[own], f"{path}:{line}: imports {name}"


def bindings(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each name that a file binds, and whether it is that of a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, False
        elif isinstance(node, ast.arg):
            yield node.arg, False
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, True


def test_names_say_what_they_hold() -> None:
    vague = set()
    for path in MODULES:
        for name, is_function in bindings(path):
            word = name.lstrip("_")
            is_participle = is_function and "_" not in word and word.endswith("ed")
            if is_participle or word in (SAY_NOTHING_OF_FUNCTIONS if is_function else SAY_NOTHING):
                vague.add((str(path.relative_to(PACKAGE)), name))
    assert vague <= ALLOWED, f"name what they hold: {sorted(vague - ALLOWED)}"
    assert vague >= ALLOWED, f"remove from ALLOWED: {sorted(ALLOWED - vague)}"

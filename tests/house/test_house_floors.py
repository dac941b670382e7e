"""Do imports only point down, and never in a circle?"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [
    {"types", "errors", "hooks", "registry", "tree", "json_text", "counts"},
    {"config", "launch", "state"},
    {"parallel", "metrics", "optim", "loggers"},
    {"data", "step", "checkpoint"},
    {"loop", "callbacks"},
    {"trainer"},
    {"tuning", "report", "testing"},
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool, modules: set[str]) -> set[str]:
    """Returns the modules of this package that a source imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = node.level - 1 if is_package else node.level
            base = ".".join(parts[: len(parts) - up]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                found.add(inner if inner in modules else origin)
    return {name for name in found if name == "xtrainer" or name.startswith("xtrainer.")}


def points_down(room: str, other: str) -> bool:
    """Says whether one room may import another; the shared words of floor 0 are one room."""
    upper, lower = FLOOR_OF.get(room, -1), FLOOR_OF.get(other, 99)
    return upper > lower or upper == lower == 0


def floor_faults(graph: dict[str, set[str]]) -> list[str]:
    """Returns a sentence for each import that does not point down."""
    faults = []
    for module, targets in graph.items():
        if module in ("xtrainer", "xtrainer.__main__"):
            continue
        room = module.split(".")[1]
        for target in sorted(targets):
            other = (target.split(".") + [""])[1]
            if not other:
                faults.append(f"{module} imports the package's own front door")
            elif room != other and not points_down(room, other):
                faults.append(f"{module} (floor {FLOOR_OF.get(room)}) imports {target}")
    return faults


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the import circles that a walk in depth meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def graph_of(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    names = set(sources)
    return {
        module: imports_of(text, module, is_package, names)
        for module, (text, is_package) in sources.items()
    }


def tree_graph() -> dict[str, set[str]]:
    paths = sorted((ROOT / "xtrainer").rglob("*.py"))
    return graph_of(
        {module_name(p): (p.read_text(encoding="utf-8"), p.name == "__init__.py") for p in paths}
    )


def test_imports_point_down() -> None:
    graph = tree_graph()
    assert len(graph) > 10
    assert floor_faults(graph) == []


def test_no_file_imports_itself_through_others() -> None:
    assert cycles(tree_graph()) == []


def test_every_room_has_a_floor() -> None:
    inside = [p for p in (ROOT / "xtrainer").iterdir() if p.suffix == ".py" or any(p.glob("*.py"))]
    rooms = {path.stem for path in inside} - {"__init__", "__main__", "__pycache__"}
    assert rooms <= set(FLOOR_OF)


def test_contributing_shows_the_same_floors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdecimal():
            rows[int(cells[0])] = {name.strip(" `") for name in cells[1].split(",")}
    assert rows == dict(enumerate(FLOORS))


@pytest.mark.parametrize(
    "source",
    [
        "from xtrainer.trainer import TrainerModule",
        "import xtrainer.loop.train",
        "from xtrainer import callbacks",
        "from ..data import loader",
        "def f():\n    from xtrainer.checkpoint import manager",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from xtrainer.trainer import T",
        "import xtrainer as xt",
        "from xtrainer.unheard_of import x",
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(source: str) -> None:
    rooms = ["trainer", "loop", "callbacks", "data", "checkpoint"]
    planted = {f"xtrainer.{room}": ("", True) for room in rooms}
    planted["xtrainer.step.train"] = (source, False)
    assert len(floor_faults(graph_of(planted))) == 1


def test_only_the_shared_words_may_know_their_neighbours() -> None:
    words = {"xtrainer.registry": {"xtrainer.errors"}, "xtrainer.types": {"xtrainer.state"}}
    assert floor_faults(words) == ["xtrainer.types (floor 0) imports xtrainer.state"]


def test_an_import_that_points_down_is_fine() -> None:
    source = "import jax\nfrom xtrainer.optim import build\nfrom . import loss\nfrom .loss import f"
    planted = {"xtrainer.step.train": (source, False), "xtrainer.step.loss": ("", False)}
    assert graph_of(planted)["xtrainer.step.train"] == {"xtrainer.optim", "xtrainer.step.loss"}
    assert floor_faults(graph_of(planted)) == []


def test_a_circle_is_found() -> None:
    planted = {
        "xtrainer.step": ("from xtrainer.step.a import f", True),
        "xtrainer.step.a": ("from xtrainer.step.b import g", False),
        "xtrainer.step.b": ("def g():\n    import xtrainer.step.a", False),
    }
    assert cycles(graph_of(planted)) == [["xtrainer.step.a", "xtrainer.step.b", "xtrainer.step.a"]]

"""Is everything a user meets explained where it is defined?"""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "xtrainer").rglob("*.py"))
DOORS = sorted(path.parent.name for path in (ROOT / "xtrainer").glob("*/__init__.py"))


def config_names(trees: list[ast.Module]) -> set[str]:
    """Returns the names of all classes that derive from ``Config``, directly or not."""
    bases = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"Config"}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found


def bare_fields(tree: ast.AST, configs: set[str]) -> list[str]:
    """Returns the config fields that no docstring follows."""
    found = []
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef) and owner.name in configs:
            for field, after in zip(owner.body, [*owner.body[1:], None], strict=True):
                if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field):
                    continue
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if not (said and isinstance(after.value.value, str)):  # type: ignore[union-attr]
                    found.append(f"{owner.name}.{ast.unparse(field.target)}")
    return found


def is_explained(thing: Any) -> bool:
    """Says whether a class or function has a docstring of its own; other values need none."""
    if not inspect.isclass(thing) and not inspect.isroutine(thing):
        return True
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    # ``dataclass`` writes the signature where nothing was written.
    return bool(doc and doc.strip()) and not doc.startswith(f"{thing.__name__}(")


def test_every_config_field_is_explained_beside_its_default() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    configs = config_names(trees)
    assert [name for tree in trees for name in bare_fields(tree, configs)] == []


@pytest.mark.parametrize("room", ["", *DOORS])
def test_every_name_behind_a_door_is_explained(room: str) -> None:
    door = importlib.import_module(f"xtrainer.{room}".strip("."))
    assert door.__doc__
    assert [name for name in door.__all__ if not is_explained(getattr(door, name))] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_a_field_without_a_docstring_is_found() -> None:
    planted = ast.parse(
        "class A(Config):\n    a: int = 1\n    'said'\n    b: int = 2\n"
        "class B(x.A):\n    KINDS: ClassVar[tuple] = ()\n    c: int\n    def f(self): 'said'\n"
        "class C:\n    d: int = 1\n"
    )
    assert bare_fields(planted, config_names([planted])) == ["A.b", "B.c"]


def test_a_name_without_a_docstring_is_found() -> None:
    from dataclasses import dataclass

    class Explained:
        """Said."""

    @dataclass
    class Inherits(Explained):
        a: int = 1

    assert is_explained(Explained)
    assert is_explained(3)
    assert not is_explained(Inherits)
    assert not is_explained(lambda: 1)

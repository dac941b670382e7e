"""Are the public names the ones in ``public_names.txt``? A change of them shows in review.

After a wanted change: ``python tests/house/test_house_public_names.py`` writes the list anew.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("public_names.txt")
DOORS = [
    "xtrainer",
    *sorted(f"xtrainer.{path.parent.name}" for path in ROOT.glob("xtrainer/*/__init__.py")),
]


def names_behind(doors: Iterable[ModuleType]) -> list[str]:
    """Returns every name of every ``__all__`` with its door, in order."""
    return sorted(f"{door.__name__}.{name}" for door in doors for name in door.__all__)


def door_faults(door: ModuleType) -> list[str]:
    """Returns a sentence for each name that a door promises and does not have, or has twice."""
    names = list(door.__all__)
    missing = [f"{name} is not there" for name in names if not hasattr(door, name)]
    twice = sorted({f"{name} is listed twice" for name in names if names.count(name) > 1})
    return missing + twice


def test_public_names_are_the_listed_ones() -> None:
    found = names_behind(importlib.import_module(door) for door in DOORS)
    listed = LIST.read_text(encoding="utf-8").splitlines()
    assert listed == found, "run: python tests/house/test_house_public_names.py"


@pytest.mark.parametrize("door", DOORS)
def test_a_door_has_what_it_lists(door: str) -> None:
    assert door_faults(importlib.import_module(door)) == []


def test_names_and_faults_of_a_planted_door() -> None:
    door = ModuleType("xtrainer.planted")
    door.__dict__.update(a=1, __all__=["b", "a", "a"])
    assert names_behind([door])[0] == "xtrainer.planted.a"
    assert door_faults(door) == ["b is not there", "a is listed twice"]


if __name__ == "__main__":
    lines = names_behind(importlib.import_module(door) for door in DOORS)
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} names written to {LIST}")

"""What every worker does: join the run, play scenarios, record what came of them as JSON."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import xtrainer as xt


class Member:
    """This process of the run.

    Args:
        folder: Where it records.
        index: Its number.
        count: How many processes there are.
    """

    def __init__(self, folder: Path, index: int = 0, count: int = 1) -> None:
        self.folder, self.index, self.count = folder, index, count
        self.failed: float | None = None

    def is_one_of(self, processes: str) -> bool:
        """Says whether something is to be done here, by numbers as ``"01"``; always if alone."""
        return self.count == 1 or str(self.index) in processes

    def record(self, name: str, value: Any) -> None:
        """Writes what this process has to say under a name."""
        path = self.folder / f"{name}.{self.index}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(value), encoding="utf-8")
        os.replace(part, path)

    def fails(self) -> None:
        """Notes that this process fails now."""
        self.failed = time.time()
        (self.folder / f"failed.{self.index}").write_text(repr(self.failed))

    def play(self, name: str, scenario: Callable[["Member"], Any]) -> dict[str, Any]:
        """Returns what a scenario gave or raised, and when it was left."""
        self.failed = None
        value, error, text = None, None, ""
        try:
            value = scenario(self)
        except Exception as raised:
            error = type(raised).__name__
            text = "".join(traceback.format_exception(raised))
        left = time.time()
        return {"value": value, "error": error, "text": text, "failed": self.failed, "left": left}


def join(**arguments: Any) -> Member:
    """Joins the run; the folder is the first argument of the program."""
    info = xt.initialize(**arguments)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    return Member(Path(sys.argv[1]), info.process_index, info.process_count)


def play_all(scenarios: Mapping[str, Callable[[Member], Any]], **arguments: Any) -> None:
    """Joins, plays the scenarios that the further arguments name, and records each at once."""
    member = join(**arguments)
    for name in sys.argv[2:]:
        member.record(name, member.play(name, scenarios[name]))


def whole(tree: Any) -> Any:
    """Returns arrays that are spread over processes as NumPy arrays, equal on all of them."""

    def gathered(x: jax.Array) -> np.ndarray:
        if not x.is_fully_replicated:
            mesh = x.sharding.mesh  # type: ignore[attr-defined]
            x = jax.jit(lambda y: y, out_shardings=NamedSharding(mesh, PartitionSpec()))(x)
        return np.array(jax.device_get(x))

    return jax.tree.map(gathered, tree)


def leaves(tree: Any) -> list[list[float]]:
    """Returns every number of a tree, exactly, for JSON."""
    return [leaf.ravel().tolist() for leaf in jax.tree.leaves(whole(tree))]

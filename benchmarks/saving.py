"""What would a person write by hand to save? Orbax alone, at the beginning of every other turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from benchmarks.bare import BareLoop
from benchmarks.measure import Pairs, Row, interleave

TURN_S_PER_GB = 5.0
"""Seconds of a turn: longer than a save goes on in the background."""
AHEAD = 2


class SavingLoop(BareLoop):
    """A hand-written loop that saves with Orbax alone at the beginning of every other turn.

    Attributes:
        manager: Orbax's own, which keeps one step as the trainer does.
        turns: Turns so far.
        stalls_s: The longest stall of a step in each of them.
        shapes: Of what is saved.
    """

    manager: ocp.CheckpointManager
    stalls_s: list[float]
    shapes: Any
    turns: int = 0

    def open(self, folder: Path) -> None:
        """Opens the folder that is saved to."""
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(folder, options=options)
        self.stalls_s = []
        self.shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, self.saved)

    def read(self) -> Any:
        """Returns the newest of what was saved, as arrays on the device."""
        self.manager.wait_until_finished()
        step, template = self.manager.latest_step(), self.shapes
        found = self.manager.restore(step, args=ocp.args.StandardRestore(template))
        return jax.block_until_ready(found)

    def make_room(self) -> None:
        """Frees the state, so that there is room for what is read; ends the loop."""
        self.manager.wait_until_finished()
        self.params = self.opt_state = None

    def close(self) -> None:
        """Closes the folder."""
        self.manager.close()

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved."""
        return {"params": self.params, "opt_state": self.opt_state}

    def run(self, steps: int) -> float:
        """Takes a turn, which begins with a save where its number is even."""
        start = time.perf_counter()
        if self.turns % 2 == 0:
            self.manager.save(self.turns, args=ocp.args.StandardSave(self.saved))
        self.turns += 1
        times = [start]
        losses: list[Any] = []
        for _ in range(steps):
            self.params, self.opt_state, loss = self.step(
                self.params, self.opt_state, next(self.batches)
            )
            losses.append(loss)
            if len(losses) > AHEAD:
                losses.pop(0).block_until_ready()
            times.append(time.perf_counter())
        jax.block_until_ready(self.params)
        end = time.perf_counter()
        self.stalls_s.append(longest_stall(times))
        return end - start


def longest_stall(times: Sequence[float]) -> float:
    """Returns by how much the longest time between two of the moments exceeds the usual one.

    Example:
        >>> longest_stall([0.0, 4.0, 5.0, 6.0, 7.0])
        3.0
    """
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return max(steps) - statistics.median(steps)


def in_turns(seconds: Sequence[float]) -> tuple[list[float], list[float]]:
    """Returns the values of turns with a save and of those after them.

    Left out are the first turn, which has no save, and the pair after it, which warms up.

    Example:
        >>> in_turns([0.0, 8.0, 1.0, 5.0, 2.0, 6.0, 3.0])
        ([5.0, 6.0], [2.0, 3.0])
    """
    return list(seconds[3::2]), list(seconds[4::2])


def lost(seconds: Sequence[float]) -> list[float]:
    """Returns by how much turns with a save took longer than the turns after them."""
    return [a - b for a, b in zip(*in_turns(seconds), strict=True)]


def moments_of(spans: Sequence[tuple[float, float]], times: Sequence[float]) -> list[list[float]]:
    """Returns the moments of each of a framework's turns, from its beginning to its last step.

    At the end of a turn all steps that are under way are waited for; that is no stall.

    Example:
        >>> moments_of([(0.0, 2.0), (3.0, 5.0)], [1.0, 2.5, 4.0])
        [[0.0, 1.0], [3.0, 4.0]]
    """
    return [[a, *(t for t in times if a < t < b)] for a, b in spans]


def seconds_of_a_turn(megabytes: int) -> float:
    """Returns the seconds of a turn with a state of so many megabytes."""
    return max(1.0, TURN_S_PER_GB * megabytes / 1000)


def steps_of_a_turn(run: Callable[[int], float], seconds: float) -> int:
    """Returns how many steps of a loop take about so many seconds."""
    run(1)
    return max(4, round(seconds / (run(3) / 3)))


def turns_of_all(repeats: int) -> int:
    """Returns the number of turns: one, and pairs of which the first of two begins with a save.

    Example:
        >>> turns_of_all(1)
        6
    """
    return 2 + 2 * (repeats + 1)


def rows_of_saves(
    megabytes: int,
    lost_s: tuple[Sequence[float], Sequence[float]],
    stalls_s: tuple[Sequence[float], Sequence[float]],
    **texts: str,
) -> list[Row]:
    """Returns the row of the time lost to a save and that of the longest stall.

    Args:
        megabytes: Of the state.
        lost_s: Of the hand-written loop and of the framework, what :func:`lost` gives.
        stalls_s: Of both, the longest stall of a step in each turn.
        texts: ``who`` and ``note`` of the rows.
    """
    bare_stalls, own_stalls = (in_turns(side)[0] for side in stalls_s)
    cases = {
        "time lost to a save": Pairs(*lost_s),
        "longest stall of a step": Pairs(bare_stalls, own_stalls),
    }
    return [
        pairs.row("checkpoint", f"{megabytes} MB, {case}", "s", 1.0, **texts)
        for case, pairs in cases.items()
    ]


def row_of_restores(
    megabytes: int, read: Callable[[], Any], load: Callable[[], Any], repeats: int, **texts: str
) -> Row:
    """Returns the row of a restore: by hand and by the framework, which read as many bytes."""

    def timed(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    pairs = interleave(lambda: timed(read), lambda: timed(load), repeats)
    return pairs.row("checkpoint", f"{megabytes} MB, restore", "s", 1.0, **texts)

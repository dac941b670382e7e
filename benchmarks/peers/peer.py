"""What does an adapter tell of its peer? How it trains a task, and what it does not have."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.models import Batch, Task
from benchmarks.peers.turns import Turns

CASE = "log every 50"
ALL_HOOKS = "log every step"
LOG_EVERY = 50
FULL_STEPS = 500
"""Of a turn of the tiny network; peers that are slow may take fewer."""

ORBAX = "Bare: the same state with Orbax alone, asynchronous, one step kept."

Evaluate = Callable[[int], tuple[float, float | None]]
"""From a number of batches to the mean loss, and to the accuracy where there is one."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a peer and its bare loop train in turn.

    Attributes:
        steps: Steps of a turn.
        turns: Turns of each side; the first compiles and the second warms up.
        folder: For logs and checkpoints; there already, and removed by whoever made it.
        pieces: Micro-batches of a step.
        all_devices: Whether the rows are divided over all devices.
        all_hooks: Whether the peer has everything that it adds by itself.
        saves: Whether both sides save at the beginning of every other turn.
    """

    steps: int
    turns: int
    folder: Path
    pieces: int = 1
    all_devices: bool = False
    all_hooks: bool = False
    saves: bool = False

    @property
    def total(self) -> int:
        """Steps of all turns."""
        return self.steps * self.turns

    @property
    def log_every(self) -> int:
        """Steps of a row of the log."""
        return min(LOG_EVERY, self.steps)


@dataclass(frozen=True)
class Trained:
    """What both sides have after their turns.

    Attributes:
        turns: Their times.
        params: The peer's parameters, in the host's memory.
        bare_params: Those of the bare loop, in the same structure.
        restore: Reads the peer's newest checkpoint; None: the peer cannot do that by itself.
    """

    turns: Turns
    params: Any
    bare_params: Any
    restore: Callable[[], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer as its adapter describes it.

    Attributes:
        name: Of the catalog.
        train: Trains a task in turn with a bare loop.
        note: What a reader of its rows must know.
        evaluators: The bare evaluation of a task and the peer's own.
        missing: By workload, why it is not measured.
        cases: By further case of the tiny network, the fields of :class:`Course` and a note.
        steps: Steps of a turn of the tiny network; of many arrays, fewer in proportion.
        bare_start: The script that the peer's start is compared with.
        keeps_compiled: Whether there are compiled programs that a second start could find.
        waits: Whether a step waits for an earlier one. Otherwise many of them are dispatched at
            once, and the time from one to the next says nothing.
        checkpoint: What is saved, and against what.
    """

    name: str
    train: Callable[[Task, Course], Trained]
    note: str
    evaluators: Callable[[Task], tuple[Evaluate, Evaluate]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    cases: Mapping[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    steps: int = FULL_STEPS
    bare_start: str = "benchmarks.starts.bare"
    keeps_compiled: bool = True
    waits: bool = True
    checkpoint: str = ORBAX


def in_pieces(task: Task, pieces: int) -> list[Batch]:
    """Returns the batches of a task, each divided into micro-batches in the order of its rows."""
    parts = [
        {name: array.reshape(pieces, -1, *array.shape[1:]) for name, array in batch.items()}
        for batch in task.batches
    ]
    return [{name: x[i] for name, x in part.items()} for part in parts for i in range(pieces)]


def init_params(task: Task) -> Any:
    """Returns parameters of a task, in the host's memory; always the same ones."""
    inputs = task.batches[0]["inputs"]
    return jax.device_get(jax.jit(task.model.init)(jax.random.key(0), inputs)["params"])


def make_folder() -> Path:
    """Returns a new folder that is removed at the end of the process."""
    folder = tempfile.mkdtemp(prefix="xtrainer-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)

"""What is measured of a peer? The workloads that xtrainer is measured on, as far as it has them."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks import lengths
from benchmarks.measure import Pairs, Row
from benchmarks.models import Task, ballast_task, gpt_task, leaves_task, mlp_task
from benchmarks.peers.peer import CASE, FULL_STEPS, Course, Peer
from benchmarks.saving import (
    longest_stall,
    lost,
    moments_of,
    row_of_restores,
    rows_of_saves,
    seconds_of_a_turn,
    steps_of_a_turn,
    turns_of_all,
)

MS: dict[str, Any] = {"unit": "ms/step", "scale": 1e3}
PIECES = 8
LARGE_STEPS = 50
"""Of a turn of the transformer."""
LEAVES = {10: 500, 100: 200, 1000: 50}
"""Steps of a turn, by the number of arrays."""
DEVICE_STEPS, LARGE_DEVICE_STEPS = 100, 20
SIZES_MB = (100,)


@contextmanager
def course_of(steps: int, turns: int, **settings: Any) -> Iterator[Course]:
    """Gives a course with a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        yield Course(steps=steps, turns=turns, folder=Path(folder), **settings)


def pairs_of(peer: Peer, task: Task, steps: int, repeats: int, **settings: Any) -> Pairs:
    """Returns seconds a step of both sides."""
    with course_of(steps, repeats + 2, **settings) as course:
        return peer.train(task, course).turns.pairs


def lacks(peer: Peer, workload: str, why: str, case: str = "") -> Row:
    """Returns a row without values that says why there are none."""
    return Row(workload, case, who=peer.name, note=f"not available: {why}")


def mlp(peer: Peer, repeats: int, steps: int | None = None) -> list[Row]:
    """Returns a row for each case of the tiny network."""
    rows = []
    for case, (settings, note) in {CASE: ({}, peer.note), **peer.cases}.items():
        pairs = pairs_of(peer, mlp_task(), steps or peer.steps, repeats, **settings)
        rows.append(pairs.row("mlp", case, who=peer.name, note=note))
    return rows


def gpt(
    peer: Peer, repeats: int, steps: int = LARGE_STEPS, rows: int = 8, layers: int = 2
) -> list[Row]:
    """Returns the row of the transformer."""
    pairs = pairs_of(peer, gpt_task(rows=rows, layers=layers), steps, repeats)
    return [pairs.row("gpt", CASE, who=peer.name, note=peer.note, **MS)]


def leaves(peer: Peer, repeats: int, counts: Sequence[int] = tuple(LEAVES)) -> list[Row]:
    """Returns a row for each number of arrays."""
    rows = []
    for count in counts:
        steps = max(1, LEAVES.get(count, LARGE_STEPS) * peer.steps // FULL_STEPS)
        pairs = pairs_of(peer, leaves_task(count), steps, repeats)
        rows.append(pairs.row("leaves", f"{count} arrays", who=peer.name, note=peer.note))
    return rows


def accumulate(
    peer: Peer, repeats: int, steps: int = LARGE_STEPS, rows: int = 16, layers: int = 2
) -> list[Row]:
    """Returns the row of accumulation over micro-batches."""
    pairs = pairs_of(peer, gpt_task(rows=rows, layers=layers), steps, repeats, pieces=PIECES)
    case = f"{PIECES} micro-batches, {CASE}"
    return [pairs.row("accumulate", case, who=peer.name, note=peer.note, **MS)]


def devices(
    peer: Peer, repeats: int, steps: int = DEVICE_STEPS, large_steps: int = LARGE_DEVICE_STEPS
) -> list[Row]:
    """Returns a row for the tiny network and one for the transformer."""
    count, rows = len(jax.devices()), []
    large, small = gpt_task(rows=2 * count), mlp_task(rows=8 * count)
    for name, task, turn, unit in (
        ("tiny network", small, steps, {}),
        ("transformer", large, large_steps, MS),
    ):
        pairs = pairs_of(peer, task, turn, repeats, all_devices=True)
        case = f"{name}, {count} devices"
        rows.append(pairs.row("devices", case, who=peer.name, note=peer.note, **unit))
    return rows


def evaluation(
    peer: Peer, repeats: int, short: int = lengths.SHORT, long: int = lengths.LONG
) -> list[Row]:
    """Returns a row for a batch and one for what an evaluation costs once."""
    if peer.evaluators is None:
        raise LookupError(f"{peer.name} has no evaluation. Say so in Peer.missing.")
    bare, own = peer.evaluators(mlp_task())
    gives = "mean loss and accuracy" if own(1)[1] is not None else "the mean loss alone"
    note = f"The hand-written side gives mean loss and accuracy, {peer.name} {gives}."
    return lengths.compare(bare, own, repeats, short, long, who=peer.name, note=note)


def start(peer: Peer, repeats: int) -> list[Row]:
    """Returns rows for a cold start and, where there is one, a warm one."""
    from benchmarks.workloads.start import starts

    scripts = peer.bare_start, f"benchmarks.starts.{peer.name}"
    rows = starts("cold", repeats, None, scripts)
    if peer.keeps_compiled:
        with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
            rows += starts("warm", repeats, Path(folder), scripts)
    return [replace(row, who=peer.name) for row in rows]


def checkpoint(
    peer: Peer, repeats: int, sizes: Sequence[int] = SIZES_MB, turn_s: float | None = None
) -> list[Row]:
    """Returns three rows for each size of the state, in megabytes."""
    rows, texts = [], {"who": peer.name, "note": peer.checkpoint}
    for size in sizes:
        task, seconds = ballast_task(size), turn_s or seconds_of_a_turn(size)
        with course_of(1, 1) as course:
            steps = steps_of_a_turn(peer.train(task, course).turns.bare.run, seconds)
        with course_of(steps, turns_of_all(repeats), saves=True) as course:
            trained = peer.train(task, course)
            turns, loop = trained.turns, trained.turns.bare
            stalled = [longest_stall(moments) for moments in moments_of(turns.spans, turns.asked)]
            seconds_lost = lost(turns.bare_s), lost(turns.peer_s)
            rows += rows_of_saves(size, seconds_lost, (loop.stalls_s[1:], stalled), **texts)
            if not peer.waits:
                rows[-1] = lacks(
                    peer, "checkpoint", "its steps wait for none before", rows[-1].case
                )
            loop.make_room()
            if trained.restore is None:
                why = "it restores only where a training begins"
                rows.append(lacks(peer, "checkpoint", why, f"{size} MB, restore"))
            else:
                rows.append(row_of_restores(size, loop.read, trained.restore, repeats, **texts))
            loop.close()
    return rows


MEASURES: dict[str, Callable[..., list[Row]]] = {
    "mlp": mlp,
    "gpt": gpt,
    "accumulate": accumulate,
    "devices": devices,
    "leaves": leaves,
    "evaluation": evaluation,
    "checkpoint": checkpoint,
    "start": start,
}


def measure(peer: Peer, workload: str, repeats: int, **sizes: Any) -> list[Row]:
    """Returns the rows of a peer on a workload; one that says why where it is not measured."""
    if workload in peer.missing:
        return [lacks(peer, workload, peer.missing[workload])]
    return MEASURES[workload](peer, repeats, **sizes)

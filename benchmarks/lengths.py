"""What does a batch of an evaluation cost? The slope between a short and a long one."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.measure import Pairs, Row, interleave, slopes

SHORT, LONG = 100, 1100
NOTE = "Both sides give mean loss and accuracy."


def timed(run: Callable[[int], Any], length: int) -> float:
    """Returns the seconds of an evaluation; its result is on the host then."""
    start = time.perf_counter()
    run(length)
    return time.perf_counter() - start


def compare(
    bare: Callable[[int], Any],
    framework: Callable[[int], Any],
    repeats: int,
    short: int = SHORT,
    long: int = LONG,
    **texts: Any,
) -> list[Row]:
    """Returns a row for a batch and one for what an evaluation costs once.

    Args:
        bare: The hand-written evaluation of a number of batches.
        framework: The framework's.
        repeats: Pairs that count.
        short: Batches of the shorter evaluation.
        long: Batches of the longer one.
        texts: ``who`` and ``note`` of the rows.
    """
    found: dict[int, list[Pairs]] = {short: [], long: []}
    for _ in range(repeats + 1):
        for length, pairs in found.items():
            sides = (lambda n=length: timed(bare, n)), (lambda n=length: timed(framework, n))
            pairs.append(interleave(*sides, repeats=1, warm_up=0))
    few, many = (joined(pairs[1:]) for pairs in found.values())  # the first of each compiles
    return rows_of_lengths(few, many, short, long, **texts)


def joined(parts: list[Pairs]) -> Pairs:
    """Returns several measurements as one."""
    bare = [value for part in parts for value in part.bare]
    return Pairs(bare, [value for part in parts for value in part.framework])


def rows_of_lengths(few: Pairs, many: Pairs, short: int, long: int, **texts: Any) -> list[Row]:
    """Returns the rows of evaluations of two lengths: what is spent for each batch, and once."""
    each = Pairs(
        slopes(few.bare, many.bare, long - short),
        slopes(few.framework, many.framework, long - short),
    )
    once = Pairs(
        [a - short * b for a, b in zip(few.bare, each.bare, strict=True)],
        [a - short * b for a, b in zip(few.framework, each.framework, strict=True)],
    )
    return [
        each.row("evaluation", "a batch", "us/batch", **texts),
        replace(once.row("evaluation", "once for an evaluation", "us", **texts), ratio=None),
    ]

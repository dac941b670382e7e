"""May this step change the state? Decided and enforced inside the compiled step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.metrics import to_host
from xtrainer.state import GuardState, TrainState
from xtrainer.step.order import Line
from xtrainer.step.scaling import Overflow, next_scale
from xtrainer.step.signals import Signals, ends_after, ends_before
from xtrainer.types import PyTree


class StepReport(NamedTuple):
    """What the host learns of a step, read a few steps late.

    Attributes:
        step: Batches taken by the state.
        skipped: Steps refused since the beginning.
        consecutive: Steps refused in a row.
        first: The step that began that row, 0 where there is none.
        ended: What processes said when they ended the run, 0 where it goes on.
        agreed: What every process said with this step; see ``xtrainer.step.signals``.
        examples: Rows of this step without padding, of all processes; 0 if it was not taken.
    """

    step: int
    skipped: int
    consecutive: int
    first: int
    ended: int = 0
    agreed: int = 0
    examples: int = 0

    @classmethod
    def fetch(cls, report: jax.Array) -> "StepReport":
        """Returns the report on the host, of several that of the last; waits for the step."""
        return cls(*np.atleast_2d(to_host(report))[-1].tolist())

    @property
    def halted(self) -> bool:
        """Whether a refused step has ended the run; that one counts as skipped, not as taken."""
        return self.consecutive > 0 and self.first + self.consecutive - 1 > self.step

    @property
    def updates(self) -> int:
        """Steps taken that were not refused."""
        return self.step - self.skipped + self.halted


def all_finite(*trees: PyTree) -> jax.Array:
    """Returns bool ``()``: whether every number of every floating leaf is finite."""
    leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def guard_step(
    old: TrainState,
    new: TrainState,
    finite: jax.Array,
    limit: int | None,
    signals: Signals | None = None,
    line: Line | None = None,
    overflow: Overflow | None = None,
) -> tuple[TrainState, jax.Array]:
    """Returns the state after the guard, and whether the step was accepted.

    A refused step leaves parameters, optimizer state and mutable collections as they were, by
    selection: multiplying by zero would write NaN. After ``limit`` refused steps in a row every
    later step is refused as well and not even counted, so that steps which the host has already
    dispatched find the state as the last good step left it.

    A step that lowers a dynamic scale of the loss is refused and is no failure: a row of refused
    steps ends with it as with a good one.

    Args:
        old: The state before the step.
        new: The state as the optimizer would leave it; its ``step`` and ``guard`` are not read.
        finite: bool ``()``, whether loss, gradients and updates are.
        limit: Refused steps in a row that halt the run; None: no limit.
        signals: What the processes of the run said with this step; None for a process alone.
        line: Where the selections wait for one another; None: they do not.
        overflow: What the step says to a dynamic scale of the loss; None: it is not dynamic.
    """
    line = line or Line(False)
    guard = old.guard
    none = jnp.zeros((), jnp.int32)
    before = none if signals is None else ends_before(signals)
    after = none if signals is None else ends_after(signals)
    ended = jnp.where(guard.ended > 0, guard.ended, before)
    halted = ended > 0
    if limit is not None:
        halted |= guard.consecutive >= limit
    accept = finite & ~halted
    refused = ~finite & ~halted
    passed, failed = accept, refused
    if overflow is not None:
        finite |= overflow.lowers
        passed, failed = finite & ~halted, refused & ~overflow.lowers
    consecutive = jnp.where(halted, guard.consecutive, jnp.where(finite, 0, guard.consecutive + 1))
    begins = failed & (guard.consecutive == 0)
    skipped = guard.skipped + refused.astype(jnp.int32)
    first = jnp.where(begins, old.step + 1, jnp.where(passed, 0, guard.first))
    numbers = [skipped, consecutive, first, jnp.where(halted, ended, after)]
    counts = jnp.stack([*numbers, *next_scale(guard, overflow, accept, refused)])
    halts = halted if limit is None else halted | (consecutive >= limit)
    state = old.replace(
        step=jnp.where(halts, old.step, old.step + 1),
        params=line.select(accept, new.params, old.params),
        opt_state=line.select(accept, new.opt_state, old.opt_state),
        mutable_variables=line.select(accept, new.mutable_variables, old.mutable_variables),
        guard=GuardState(counts),
    )
    return state, accept


def report_of(
    old: TrainState, new: TrainState, row_mask: jax.Array, signals: Signals | None = None
) -> jax.Array:
    """Returns what the host is told of a step, int32 ``(7,)``; see :class:`StepReport`.

    Args:
        old: The state before the step.
        new: The state after it.
        row_mask: bool ``(rows,)``, False for padding.
        signals: As for :func:`guard_step`.
    """
    rows = row_mask.astype(jnp.float32).sum().astype(jnp.int32)
    examples = jnp.where(new.step > old.step, rows, 0)
    agreed = jnp.zeros((), jnp.int32) if signals is None else signals.all
    counts = new.guard.counts[:4] if new.guard.keeps_scale else new.guard.counts
    return jnp.concatenate([new.step[None], counts, jnp.stack([agreed, examples])])

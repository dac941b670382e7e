"""May this step change the state? Decided and enforced inside the compiled step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.state import GuardState, TrainState
from xtrainer.types import PyTree


class StepReport(NamedTuple):
    """What the host learns of a step, read a few steps late.

    Attributes:
        step: Batches taken by the state.
        skipped: Steps refused since the beginning.
        consecutive: Steps refused in a row.
        first: The step that began that row, 0 where there is none.
    """

    step: int
    skipped: int
    consecutive: int
    first: int

    @classmethod
    def fetch(cls, report: jax.Array) -> "StepReport":
        """Returns the report on the host; waits for the step."""
        return cls(*np.asarray(jax.device_get(report)).tolist())

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
    old: TrainState, new: TrainState, finite: jax.Array, limit: int | None
) -> tuple[TrainState, jax.Array]:
    """Returns the state after the guard, and whether the step was accepted.

    A refused step leaves parameters, optimizer state and mutable collections as they were, by
    selection: multiplying by zero would write NaN. After ``limit`` refused steps in a row every
    later step is refused as well and not even counted, so that steps which the host has already
    dispatched find the state as the last good step left it.

    Args:
        old: The state before the step.
        new: The state as the optimizer would leave it; its ``step`` and ``guard`` are not read.
        finite: bool ``()``, whether loss, gradients and updates are.
        limit: Refused steps in a row that halt the run; None: no limit.
    """
    guard = old.guard
    halted = jnp.zeros((), bool) if limit is None else guard.consecutive >= limit
    accept = finite & ~halted
    refused = ~finite & ~halted
    consecutive = jnp.where(halted, guard.consecutive, jnp.where(finite, 0, guard.consecutive + 1))
    begins = refused & (guard.consecutive == 0)
    guard = GuardState(
        skipped=guard.skipped + refused.astype(jnp.int32),
        consecutive=consecutive,
        first=jnp.where(begins, old.step + 1, jnp.where(accept, 0, guard.first)),
    )
    halts = jnp.zeros((), bool) if limit is None else consecutive >= limit

    def select(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.where(accept, x, y), a, b)

    state = old.replace(
        step=jnp.where(halts, old.step, old.step + 1),
        params=select(new.params, old.params),
        opt_state=select(new.opt_state, old.opt_state),
        mutable_variables=select(new.mutable_variables, old.mutable_variables),
        guard=guard,
    )
    return state, accept


def report_of(state: TrainState) -> jax.Array:
    """Returns the state's counters as one int32 ``(4,)`` array; see :class:`StepReport`."""
    guard = state.guard
    return jnp.stack([state.step, guard.skipped, guard.consecutive, guard.first])

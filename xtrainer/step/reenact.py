"""What was not finite in a step? Its loss, gradient and update, computed again and looked into."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xtrainer.metrics import norms_per_param
from xtrainer.state import GuardState, TrainState
from xtrainer.step.diagnose import Finding, find_nonfinite, jit_once
from xtrainer.step.gradients import (
    BatchGradient,
    divide_frozen,
    make_gradient_fn,
    make_micro_gradient_fn,
    split_rows,
)
from xtrainer.step.guard import all_finite
from xtrainer.step.loss import evaluate_loss
from xtrainer.step.objective import make_objective_fn
from xtrainer.step.order import Line
from xtrainer.step.precision import cast_floating
from xtrainer.step.scaling import scale_of
from xtrainer.step.settings import StepSettings
from xtrainer.step.train import on_devices, propose
from xtrainer.types import ApplyFn, BatchLike, LossFunction, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class StepDiagnosis:
    """What a step is like when it is computed again.

    Attributes:
        loss: Its mean loss without regularization, up to the micro-batch that was found.
        phase: ``forward pass``, ``backward pass`` or ``update``, where that is the first in which
            something is not finite; empty where all is.
        finding: Where in it; None also where the phase gives such a number as a whole, and not when
            it is looked into: rounding then makes the difference.
        micro_batch: In which micro-batch, from 0; None where the batch is not divided.
        grad_norms: Norm of each parameter's gradient, up to that micro-batch.
    """

    loss: float
    phase: str
    finding: Finding | None
    micro_batch: int | None
    grad_norms: dict[str, float]

    def __str__(self) -> str:
        """Returns the verdict as a sentence."""
        if not self.phase:
            return "The step is finite: loss, gradient and update hold no NaN and no Inf."
        where = f"the {self.phase}"
        if self.micro_batch is not None:
            where += f" of micro-batch {self.micro_batch}"
        if self.finding is None:
            return (
                f"A non-finite value appears in {where}, but not when its operations are looked "
                "at: the way XLA rounds and fuses them decides. A number is about to overflow."
            )
        if self.finding.argument:
            return f"The first non-finite value is {self.finding}. It reaches {where}."
        return f"The first non-finite value appears in {where}, {self.finding}."


def make_norms_fn(
    loss_function: LossFunction, apply_fn: ApplyFn, settings: StepSettings
) -> Callable[..., dict[str, dict[str, jax.Array]]]:
    """Returns ``norms(params, mutable, batch, row_mask, rng, step, guard)`` by parameter.

    They are ``gradients`` and ``parameters``; ``step`` is what is folded into ``rng``, one less
    than the number of the step.

    Args:
        loss_function: As for the step.
        apply_fn: As for the step.
        settings: As for the step.
    """
    gradient = make_gradient_fn(loss_function, apply_fn, settings)

    def norms(
        params: PyTree,
        mutable: Any,
        batch: Any,
        mask: jax.Array,
        rng: PRNGKey,
        step: Any,
        guard: GuardState,
    ) -> dict[str, dict[str, jax.Array]]:
        rng, scale = jax.random.fold_in(rng, step), scale_of(settings.precision, guard)
        grads = gradient(params, mutable, batch, mask, rng, scale).grads
        return {"gradients": norms_per_param(grads), "parameters": norms_per_param(params)}

    return norms


def diagnose_step(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    state: TrainState,
    batch: BatchLike,
    row_mask: jax.Array | None = None,
) -> StepDiagnosis:
    """Returns where in a step the first non-finite number appears.

    Random numbers and micro-batches are those of :func:`xtrainer.make_train_step`. Nothing is laid
    out anew or rematerialized, so that the names are those of the model; the state is kept.

    Args:
        loss_function: As for the step.
        apply_fn: As for the step.
        optimizer: As for the step.
        settings: As for the step.
        state: Before the step.
        batch: Of the step.
        row_mask: bool ``(rows,)``, False for padding; None: all rows count.
    """
    plain = dataclasses.replace(
        settings, layout=None, param_shardings=None, opt_state_shardings=None, remat=()
    )
    if row_mask is None:
        row_mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
    state = on_devices(state, settings)
    step = _Step(loss_function, apply_fn, optimizer, plain)
    return step.diagnose(state, batch, row_mask)


class _Step:
    """The parts of a step as functions of named arguments."""

    def __init__(
        self,
        loss_function: LossFunction,
        apply_fn: ApplyFn,
        optimizer: optax.GradientTransformation,
        settings: StepSettings,
    ) -> None:
        self.loss = (loss_function, apply_fn, settings)
        self.optimizer, self.settings = optimizer, settings
        _, self.micro = make_micro_gradient_fn(*self.loss)

    def diagnose(self, state: TrainState, batch: BatchLike, row_mask: jax.Array) -> StepDiagnosis:
        """See :func:`diagnose_step`."""
        rng = jax.random.fold_in(state.rng, state.step)
        scale = scale_of(self.settings.precision, state.guard)
        count, mutable = self.settings.accumulate_steps, state.mutable_variables
        pieces = split_rows(jax.tree.map(jnp.asarray, (batch, row_mask)), count, None)
        run = jit_once(self.part)
        results: list[BatchGradient] = []
        for index in range(count):
            part, mask = jax.tree.map(lambda x, i=index: x[i], pieces)
            arguments = {"params": state.params, "mutable_variables": mutable, "batch": part}
            arguments |= {"row_mask": mask, "rng": jax.random.fold_in(rng, index), "scale": scale}
            result = run(*arguments.values())
            results.append(result)
            for phase, function, values in self.phases(result):
                if not all_finite(values, jnp.zeros(())):  # all parameters may be frozen
                    finding = _in_batch(find_nonfinite(function, arguments), index, count)
                    return self.said(results, phase, finding, index if count > 1 else None)
            mutable = result.terms.mutable
        arguments = {"params": state.params, "opt_state": state.opt_state}
        arguments |= {"mutable_variables": state.mutable_variables, "batch": batch}
        arguments |= {"row_mask": row_mask, "rng": rng, "scale": scale}
        if all_finite(jit_once(self.update)(*arguments.values())):
            return self.said(results, "", None, None)
        return self.said(results, "update", find_nonfinite(self.update, arguments), None)

    def phases(self, result: BatchGradient) -> list[tuple[str, Callable[..., Any], PyTree]]:
        """Returns the name of each phase of a micro-batch, its function, and what it has given."""
        terms = result.terms
        forward = (terms.value, terms.weight, terms.mutable)
        return [
            ("forward pass", self.forward, forward),
            ("backward pass", lambda *args: self.part(*args).grads, result.grads),
        ]

    def forward(
        self, params: PyTree, mutable: Any, batch: Any, mask: Any, rng: PRNGKey, scale: Any
    ) -> PyTree:
        """Returns all of a micro-batch that the guard looks at, but for the gradient."""
        params = cast_floating(params, self.settings.precision.compute_dtype)
        terms = evaluate_loss(*self.loss, params, mutable, batch, mask, rng, train=True)
        return terms.value, terms.weight, terms.mutable

    def part(
        self, params: PyTree, mutable: Any, batch: Any, mask: Any, rng: PRNGKey, scale: Any
    ) -> BatchGradient:
        """Returns the gradient of a micro-batch."""
        params = cast_floating(params, self.settings.precision.compute_dtype)
        divided = divide_frozen(params, self.settings.freeze)
        return self.micro(divided, mutable, batch, mask, rng, scale)

    def update(
        self,
        params: PyTree,
        opt_state: Any,
        mutable: Any,
        batch: Any,
        mask: Any,
        rng: PRNGKey,
        scale: Any,
    ) -> PyTree:
        """Returns the updates, the norm by which the guard judges, and what regularization adds."""
        state = TrainState.create(params, optax.identity(), rng, mutable)
        state = state.replace(opt_state=opt_state)
        objective, line = make_objective_fn(*self.loss), Line(False)
        result, value_fn = objective(params, mutable, batch, mask, rng, scale)
        updates, _ = propose(self.optimizer, state, result, line, value_fn)
        return updates, line.norm(result.grads, updates), result.penalty

    def said(
        self, parts: list[BatchGradient], phase: str, finding: Finding | None, micro: int | None
    ) -> StepDiagnosis:
        """Returns the diagnosis."""
        total = functools.reduce(_add, parts)
        terms = total.terms
        loss = float(terms.value) / (float(terms.weight) or 1.0)
        scale = 1.0 / (float(terms.weight) or 1.0)
        norms = jax.jit(norms_per_param)(jax.tree.map(lambda g: g * scale, total.grads))
        norms = {name: float(value) for name, value in norms.items()}
        return StepDiagnosis(loss, phase, finding, micro, norms)


def _add(total: BatchGradient, part: BatchGradient) -> BatchGradient:
    terms = part.terms.replace(
        value=total.terms.value + part.terms.value, weight=total.terms.weight + part.terms.weight
    )
    return BatchGradient(jax.tree.map(jnp.add, total.grads, part.grads), terms)


def _in_batch(finding: Finding | None, index: int, count: int) -> Finding | None:
    """Returns a finding with the row of the batch instead of that of the micro-batch."""
    if finding is None or finding.argument.split("/")[0] not in ("batch", "row_mask"):
        return finding
    row, *rest = finding.entry
    return dataclasses.replace(finding, entry=(row * count + index, *rest))

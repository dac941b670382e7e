"""What changes from step to step? One immutable tree of arrays, and a few numbers on the host."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from xtrainer.errors import CheckpointError
from xtrainer.types import JSON, PRNGKey, PyTree


class GuardState(flax.struct.PyTreeNode):
    """What the guard has refused so far; four numbers in one array, since every array of a state
    costs time at every step.

    Attributes:
        counts: int32 ``(4,)``: ``skipped``, ``consecutive``, ``first`` and ``ended``.
    """

    counts: jax.Array

    @classmethod
    def create(cls) -> "GuardState":
        """Returns the state of a guard that has refused nothing."""
        return cls(jnp.zeros((4,), jnp.int32))

    @property
    def skipped(self) -> jax.Array:
        """int32 ``()``, steps refused since the beginning of the run."""
        return self.counts[0]

    @property
    def consecutive(self) -> jax.Array:
        """int32 ``()``, steps refused in a row, up to now."""
        return self.counts[1]

    @property
    def first(self) -> jax.Array:
        """int32 ``()``, the step that began the present row of refused steps, 0 for none."""
        return self.counts[2]

    @property
    def ended(self) -> jax.Array:
        """int32 ``()``, what processes of the run said when they ended it together, 0 where it
        goes on; see ``xtrainer.step.signals``. Until it is 0 again no step is taken."""
        return self.counts[3]


class TrainState(flax.struct.PyTreeNode):
    """Everything a training step reads and writes; arrays only, so that all of it can be donated.

    Attributes:
        step: int32 ``()``, the number of batches taken, refused ones included.
        params: The model's parameters.
        opt_state: The state of the Optax transformation.
        mutable_variables: Collections the model updates itself, such as ``batch_stats``, by name.
        rng: Typed key ``()``; never advanced, each step folds its number in.
        guard: What the guard has refused.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    mutable_variables: dict[str, Any]
    rng: PRNGKey
    guard: GuardState

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        rng: PRNGKey,
        mutable_variables: dict[str, Any] | None = None,
    ) -> "TrainState":
        """Returns the state before the first step.

        Example:
            >>> state = TrainState.create({"w": jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
            >>> int(state.step)
            0
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            mutable_variables=dict(mutable_variables or {}),
            rng=rng,
            guard=GuardState.create(),
        )


@dataclass
class Progress:
    """How far a run is; plain numbers on the host, saved with every checkpoint.

    Attributes:
        step: Batches taken by the state; the number of the newest step.
        epochs_done: Finished epochs; the epoch under way has the number ``epochs_done + 1``.
        step_in_epoch: Steps of the epoch under way.
        examples: Rows trained on, padding not counted.
        batch_rows: Rows of a full batch, by which the last of a pass is known for a smaller one.
        skipped: Steps that the guard refused.
        validations: Finished validations.
        best: For each monitored metric its best ``value`` with ``step`` and ``epoch``.
    """

    step: int = 0
    epochs_done: int = 0
    step_in_epoch: int = 0
    examples: int = 0
    batch_rows: int = 0
    skipped: int = 0
    validations: int = 0
    best: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The epoch under way, or the one that has just ended."""
        return self.epochs_done + (1 if self.step_in_epoch or not self.epochs_done else 0)

    def to_json(self) -> dict[str, JSON]:
        """Returns the numbers as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Progress":
        """Returns the progress that :meth:`to_json` described.

        Raises:
            CheckpointError: If a number is missing, negative or not a whole number.
        """
        numbers = [f.name for f in fields(cls) if f.name != "best"]
        wrong = {
            name: data.get(name)
            for name in numbers
            if type(data.get(name)) is not int or data[name] < 0
        }
        best = data.get("best")
        entries = list(best.values()) if isinstance(best, Mapping) else [best]
        if wrong or not all(isinstance(entry, Mapping) for entry in entries):
            raise CheckpointError(
                f"The progress in the checkpoint has {wrong or {'best': best}}, "
                "expected whole numbers >= 0 and a mapping 'best'. The checkpoint is damaged; "
                "use another."
            )
        best = {str(name): dict(entry) for name, entry in data["best"].items()}
        return cls(**{name: data[name] for name in numbers}, best=best)

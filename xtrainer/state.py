"""What changes from step to step? One immutable tree of arrays, and a few numbers on the host."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from xtrainer.errors import CheckpointError
from xtrainer.json_text import row_from_json, row_to_json
from xtrainer.types import JSON, PRNGKey, PyTree


class GuardState(flax.struct.PyTreeNode):
    """What the guard has refused so far; four numbers in one array, since every array of a state
    costs time at every step.

    Attributes:
        counts: int32 ``(4,)``: ``skipped``, ``consecutive``, ``first`` and ``ended``. Where the
            scale of the loss is dynamic int32 ``(6,)``, with ``scale_exponent`` and
            ``good_steps``, which a refused step may change.
    """

    counts: jax.Array

    @classmethod
    def create(cls, scale_exponent: int | None = None) -> "GuardState":
        """Returns the state of a guard that has refused nothing.

        Args:
            scale_exponent: Of the dynamic scale of the loss, to begin with; None: it has none.
        """
        if scale_exponent is None:
            return cls(jnp.zeros((4,), jnp.int32))
        return cls(jnp.array((0, 0, 0, 0, scale_exponent, 0), jnp.int32))

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

    @property
    def keeps_scale(self) -> bool:
        """Whether there is a dynamic scale of the loss."""
        return self.counts.shape[0] == 6

    @property
    def scale_exponent(self) -> jax.Array:
        """int32 ``()``, of the dynamic scale of the loss, a power of two."""
        return self.counts[4]

    @property
    def good_steps(self) -> jax.Array:
        """int32 ``()``, steps accepted since that scale was changed."""
        return self.counts[5]


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
        guard: GuardState | None = None,
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
            guard=guard or GuardState.create(),
        )


@dataclass(frozen=True)
class Rollback:
    """A return of a run to an earlier checkpoint.

    Attributes:
        from_step: The last of the steps that were forgotten for it.
        to_step: That of the checkpoint.
        reason: What had happened.
        skipped: Batches that the run does not see again: for each the pass of the loader, from 0,
            and its number in the pass, from 1.
    """

    from_step: int
    to_step: int
    reason: str
    skipped: tuple[tuple[int, int], ...]

    @classmethod
    def from_json(cls, data: Any) -> "Rollback":
        """Returns what ``asdict`` gave.

        Raises:
            TypeError, KeyError, ValueError: If it is something else.
        """
        skipped = tuple((int(index), int(batch)) for index, batch in data["skipped"])
        return cls(int(data["from_step"]), int(data["to_step"]), str(data["reason"]), skipped)


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
        validated_at: The step of the newest of them, 0 for none.
        best: For each monitored metric its best ``value`` with ``step`` and ``epoch``, and the
            ``metrics`` of all sets there, measured times left out.
        best_checkpoints: For each of them the folder of that step's checkpoint. It is where the run
            is now, and so is no part of what is saved or compared.
        rollbacks: Returns to earlier checkpoints, see ``TrainerConfig.nonfinite_policy``.
    """

    step: int = 0
    epochs_done: int = 0
    step_in_epoch: int = 0
    examples: int = 0
    batch_rows: int = 0
    skipped: int = 0
    validations: int = 0
    validated_at: int = 0
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_checkpoints: dict[str, str] = field(default_factory=dict, compare=False)
    rollbacks: list[Rollback] = field(default_factory=list)

    @property
    def skipped_batches(self) -> frozenset[tuple[int, int]]:
        """Batches that the run leaves out: the pass, from 0, and the number in it, from 1."""
        return frozenset(batch for rollback in self.rollbacks for batch in rollback.skipped)

    @property
    def updates(self) -> int:
        """Steps in which the parameters were updated: all that the guard has not refused."""
        return self.step - self.skipped

    @property
    def steps_since_validation(self) -> int:
        """Steps since the newest validation, or since the beginning."""
        return self.step - self.validated_at

    @property
    def epoch(self) -> int:
        """The epoch under way, or the one that has just ended."""
        return self.epochs_done + (1 if self.step_in_epoch or not self.epochs_done else 0)

    def to_json(self) -> dict[str, JSON]:
        """Returns the numbers as JSON."""
        rollbacks = [
            {**asdict(one), "skipped": [list(batch) for batch in one.skipped]}
            for one in self.rollbacks
        ]
        best = {name: _best_to_json(entry) for name, entry in self.best.items()}
        saved = {**asdict(self), "best": best, "rollbacks": rollbacks}
        del saved["best_checkpoints"]
        return saved

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Progress":
        """Returns the progress that :meth:`to_json` described.

        Raises:
            CheckpointError: If a number is missing, negative or not a whole number.
        """
        others = ("best", "best_checkpoints", "rollbacks")
        numbers = [f.name for f in fields(cls) if f.name not in others]
        data = {"validated_at": 0, **data}  # which checkpoints of earlier versions do not have
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
        try:
            best = {str(name): _best_from_json(entry) for name, entry in data["best"].items()}
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"The progress in the checkpoint has the best values {data['best']!r:.500}, "
                "expected numbers and metrics. The checkpoint is damaged; use another."
            ) from error
        try:  # checkpoints of earlier versions have none
            rollbacks = [Rollback.from_json(one) for one in data.get("rollbacks", [])]
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"The progress in the checkpoint has the rollbacks {data['rollbacks']!r}, expected "
                "a list of steps and batches. The checkpoint is damaged; use another."
            ) from error
        return cls(**{name: data[name] for name in numbers}, best=best, rollbacks=rollbacks)


def _best_to_json(entry: Mapping[str, Any]) -> dict[str, JSON]:
    return {**entry} | ({"metrics": row_to_json(entry["metrics"])} if "metrics" in entry else {})


def _best_from_json(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry of one metric; those of earlier versions have no metrics of the others."""
    found = {str(key): value for key, value in saved.items()}
    return found | ({"metrics": row_from_json(saved["metrics"])} if "metrics" in saved else {})

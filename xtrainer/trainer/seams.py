"""What does a subclass write, and what may it replace? The loss, and what is made of a batch."""

from collections.abc import Mapping
from typing import Any

import jax

from xtrainer.data import get_input
from xtrainer.hooks import Hooks
from xtrainer.trainer.assemble import call_arguments, init_variables
from xtrainer.trainer.tried import no_loss
from xtrainer.types import (
    ApplyFn,
    BatchLike,
    LossOutput,
    MetricPostprocess,
    PRNGKey,
    PyTree,
)


class TrainerSeams(Hooks):
    """What a trainer asks of its subclass; only the loss has no default."""

    model: Any

    def loss_function(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey, train: bool = True
    ) -> LossOutput:
        """Returns ``(loss, (metrics, mutable_variables))`` of a batch; the subclass writes it.

        Args:
            params: The model's parameters.
            apply_fn: The model's ``apply``; collections that are not passed come from the state.
            batch: A batch; with accumulation a micro-batch.
            rng: Typed key of this step and micro-batch.
            train: Whether this is a training step.

        Returns:
            The loss and each metric are a scalar (a mean over the batch), an array whose first
            axis is the batch, or ``{"value": ..., "count": ...}``: a sum and its weight, or
            arrays of values and weights. A metric may add ``"log_modes"``. Collections the model
            updated may be returned; those ``apply_fn`` has gathered by itself need not be.

        Raises:
            TypeError: If the subclass has no loss function.
        """
        raise no_loss(type(self))

    def predict_function(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey
    ) -> PyTree:
        """Returns what :meth:`predict` gives for a batch: the model's outputs, unless overridden.

        The model is called with ``batch_to_input(batch)``, and ``train=False`` where it takes that.

        Args:
            params: The model's parameters.
            apply_fn: The model's ``apply``; collections that are not passed come from the state.
            batch: A batch, perhaps with rows of padding, whose results are left out.
            rng: Typed key of this batch, from ``seed_eval``.

        Returns:
            Any pytree of arrays whose first axis is the batch. A row of it may depend on the same
            row of the batch alone.
        """
        positional, named = call_arguments(self.model, self.batch_to_input(batch))
        return apply_fn({"params": params}, *positional, **named)

    @staticmethod
    def batch_to_input(batch: BatchLike) -> PyTree:
        """Returns what the model is initialized with; a tuple stands for several arguments.

        For the initialization only shapes are asked for: there it is traced and never computed.
        """
        return get_input(batch)

    @staticmethod
    def get_model_rng(rng: PRNGKey) -> dict[str, PRNGKey]:
        """Returns the keys for ``init``, by name."""
        return dict(zip(("params", "dropout"), jax.random.split(rng), strict=True))

    def run_model_init(self, exmp_input: PyTree, init_rng: PRNGKey) -> Mapping[str, Any]:
        """Returns the model's initial variables; called inside a compiled function."""
        return init_variables(self.model, exmp_input, self.get_model_rng(init_rng))

    def get_metric_postprocess_fn(self) -> MetricPostprocess:
        """Returns what is applied to host metrics before they are logged and returned."""
        return lambda metrics: metrics

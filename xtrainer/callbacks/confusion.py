"""Which classes does the model take for which others? A matrix of counts at each validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.errors import MetricError
from xtrainer.types import ApplyFn, BatchLike, HostMetrics, PRNGKey, PyTree

_MOST_CLASSES = 256
_PICTURE = 384
"""Pixels that a side of the picture has at least."""
_DARK = np.array([8, 48, 107])


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrixConfig(CallbackConfig):
    """Counts at each validation how many examples of a class are taken for which class.

    The sets are read once more for it. The loggers are given a table ``confusion_matrix/SET`` and
    an image of that name: rows are the targets, columns the predictions.
    """

    num_classes: int | None = None
    """How many classes there are, up to 256; None: as many as have a name."""
    class_names: tuple[str, ...] = ()
    """Their names in the table; (): their numbers."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all classes."""
        return self.class_names or tuple(str(number) for number in range(self.num_classes or 0))

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "ConfusionMatrix":
        """Returns the callback."""
        return ConfusionMatrix(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        count = len(self.names)
        if not 2 <= count <= _MOST_CLASSES:
            found.append(
                f"num_classes: found {self.num_classes}, with {len(self.class_names)} class_names; "
                f"expected 2 to {_MOST_CLASSES} classes."
            )
        elif self.num_classes not in (None, count):
            found.append(
                f"class_names: found {count} of them, expected as many as num_classes, which is "
                f"{self.num_classes}."
            )
        if self.main_process_only:
            found.append("main_process_only: found True, expected False: all processes count.")
        return found


class ConfusionMatrix(Callback):
    """See :class:`ConfusionMatrixConfig`; override :meth:`classify` for other models or batches.

    Attributes:
        newest: The newest matrix of each set, int64 ``(classes, classes)``.
    """

    config: ConfusionMatrixConfig

    def __init__(
        self, config: ConfusionMatrixConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.newest: dict[str, np.ndarray] = {}

    def classify(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey
    ) -> tuple[Any, Any, Any]:
        """Returns targets, predictions, and what of them counts, of a batch.

        By default these are the batch's ``targets``, the largest of the logits that
        ``TrainerModule.predict_function`` gives, and the batch's ``mask``.

        Args:
            params: The model's parameters.
            apply_fn: The model's ``apply``; collections that are not passed come from the state.
            batch: A batch, perhaps with rows of padding, which are left out later.
            rng: Typed key of this batch, from ``seed_eval``.

        Returns:
            Two integer arrays of one shape, whose first axis is the batch, and None or a mask of
            their shape, or of its first axes. What is masked is left out, and so are targets that
            are no class, such as -1.
        """
        logits = self.trainer.predict_function(params, apply_fn, batch, rng)
        targets, mask = _part(batch, "targets"), _part(batch, "mask")
        classes = len(self.config.names)
        if targets is None or getattr(logits, "shape", ())[-1:] != (classes,):
            found = "no targets" if targets is None else f"outputs of {_shape(logits)}"
            raise MetricError(
                f"{type(self).__name__}: found {found}, expected a batch with 'targets' and logits "
                f"whose last axis is {classes}. Override classify(), or set num_classes."
            )
        return targets, logits.argmax(-1), mask

    def count(self, loader: Any, title: str = "confusion") -> np.ndarray:
        """Returns int64 ``(classes, classes)``: the examples of a class (row) by prediction.

        Args:
            loader: Batches; a new pass is begun. All processes call it together.
            title: For the progress bar and messages.
        """
        classes = len(self.config.names)
        return self.trainer.count_with(self._cells, classes**2, loader, title).reshape(
            classes, classes
        )

    def _cells(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, row_mask: jax.Array, rng: PRNGKey
    ) -> jax.Array:
        """Returns int32 ``(classes**2,)``: the cells of the matrix of a batch."""
        found = self.classify(params, apply_fn, batch, rng)
        targets, predictions = (jnp.asarray(part) for part in found[:2])
        whole = all(jnp.issubdtype(part.dtype, jnp.integer) for part in (targets, predictions))
        if not whole or targets.shape != predictions.shape or targets.shape[:1] != row_mask.shape:
            raise MetricError(
                f"{type(self).__name__}: found targets of {_shape(targets)} and predictions of "
                f"{_shape(predictions)}, expected integers of one shape whose first axis is the "
                f"batch of {row_mask.shape[0]}. Override classify()."
            )
        classes = len(self.config.names)
        counts = (targets >= 0) & (targets < classes) & (predictions >= 0) & (predictions < classes)
        counts &= _spread(row_mask, counts)
        if found[2] is not None:
            counts &= _spread(jnp.asarray(found[2]) != 0, counts)
        cells = jnp.where(counts, targets * classes + predictions, classes**2)
        return jnp.zeros(classes**2 + 1, jnp.int32).at[cells.ravel()].add(1)[:-1]

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Counts every set and gives the matrices to the loggers."""
        names, logger = self.config.names, self.trainer.logger
        for name, loader in self.trainer.validation_loaders.items():
            key = f"confusion_matrix/{name or 'val'}"
            matrix = self.newest[name or "val"] = self.count(loader, key)
            rows = [[own, *line] for own, line in zip(names, matrix.tolist(), strict=True)]
            logger.log_table(key, ["target", *names], rows, step_idx)
            logger.log_image(key, draw_matrix(matrix), step_idx)


def draw_matrix(matrix: np.ndarray) -> np.ndarray:
    """Returns a picture of a matrix of counts, uint8 ``(side, side, 3)``.

    The darker a cell, the larger its share of its row.

    Example:
        >>> draw_matrix(np.array([[3, 0], [1, 1]])).shape
        (384, 384, 3)
    """
    sums = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros(matrix.shape), where=sums > 0)
    colors = np.round(255 + shares[:, :, None] * (_DARK - 255)).astype(np.uint8)
    size = -(-_PICTURE // len(matrix))
    return colors.repeat(size, axis=0).repeat(size, axis=1)


def _part(batch: BatchLike, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


def _shape(value: Any) -> str:
    has_shape = hasattr(value, "dtype") and hasattr(value, "shape")
    return f"{value.dtype}{list(value.shape)}" if has_shape else type(value).__name__


def _spread(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a mask of the first axes of an array in its shape."""
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim)), like.shape)

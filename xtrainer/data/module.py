"""What does a data set need besides loaders? To be fetched, set up for a phase, and taken down."""

import enum
from collections.abc import Iterable
from typing import Any

from xtrainer.types import BatchLike


class Phase(enum.Enum):
    """What data are for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    PREDICT = "predict"


class DataModule:
    """The data of a project in one object: derive, and write the methods that there is a need for.

    ``train_model``, ``eval_model``, ``test_model`` and ``predict`` take one in place of their first
    loader, and call, in this order and on every process:

    1. :meth:`prepare_data`, once, on the main process alone; the others wait;
    2. :meth:`setup` with the phase;
    3. what makes the loaders of the phase: all but that of predictions for ``TRAIN``, else one;
    4. :meth:`teardown` with the phase, whatever has happened since :meth:`setup` began.

    Loaders are made anew each time, and the training loader is put where the one before it stood; a
    run that is resumed finds its place likewise. That is exact where the loader, or its sampler,
    has ``get_state`` and ``set_state``, as ``ArrayLoader`` and ``GrainLoader`` have.

    Callbacks find the module as ``self.data_module``, from the first call with one on.

    Example:
        >>> import numpy as np
        >>> from xtrainer.data import ArrayLoader
        >>> class Numbers(DataModule):
        ...     def setup(self, phase):
        ...         self.arrays = {"inputs": np.arange(4.0)}
        ...
        ...     def train_loader(self):
        ...         return ArrayLoader(self.arrays, batch_size=2, shuffle=True)
    """

    is_prepared: bool = False
    """Whether :meth:`prepare_data` was called; set by the trainer."""

    def prepare_data(self) -> None:
        """Fetches or converts files; sets no attributes, since other processes go without it."""

    def setup(self, phase: Phase) -> None:
        """Opens, reads and splits the data for a phase; it may have been called before."""

    def train_loader(self) -> Iterable[BatchLike] | None:
        """Returns the training batches."""
        return None

    def val_loader(self) -> Any:
        """Returns the validation batches, a dictionary of several sets, or None for none."""
        return None

    def test_loader(self) -> Any:
        """Returns the test batches, likewise; with them ``train_model`` ends with a test."""
        return None

    def predict_loader(self) -> Iterable[BatchLike] | None:
        """Returns the batches that something is predicted for."""
        return None

    def teardown(self, phase: Phase) -> None:
        """Closes what :meth:`setup` has opened."""

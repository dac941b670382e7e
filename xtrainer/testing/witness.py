"""What does a run do, step by step? A journal that survives a kill, written by a callback."""

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.callbacks import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.checkpoint import fingerprints
from xtrainer.data import LoaderSource
from xtrainer.tree import flatten_with_paths
from xtrainer.types import JSON, HostMetrics


@dataclass(frozen=True, kw_only=True)
class WitnessConfig(CallbackConfig):
    """Writes what each step has left behind, and may kill the process at one of them."""

    journal: str = ""
    """The file; lines are added."""
    kill_at: int = -1
    """The step after which the process kills itself, as a loss of power would; -1: none."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Witness":
        """Returns the callback."""
        return Witness(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns a journal that has no name."""
        found = super().problems()
        return found if self.journal else [*found, "journal: found '', expected a file."]


class Witness(Callback):
    """See :class:`WitnessConfig`."""

    config: WitnessConfig
    needs_settled_state = True

    def __init__(
        self, config: WitnessConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.file: IO[str] = open(config.journal, "a", encoding="utf-8")

    def on_training_start(self) -> None:
        """Notes the step that training starts from."""
        write_line(self.file, {"kind": "start", "step": self.trainer.progress.step})

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Notes the state after a step; kills the process where that is wanted."""
        leaves = fingerprints(self.trainer.state)
        write_line(self.file, {"kind": "step", "step": step_idx, "leaves": leaves})
        if step_idx == self.config.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_training_end(self) -> None:
        """Notes the state at the end, byte for byte."""
        leaves = {path: _digest(leaf) for path, leaf in _leaves(self.trainer.state).items()}
        step = self.trainer.progress.step
        write_line(self.file, {"kind": "end", "step": step, "leaves": leaves})

    def finalize(self, status: str) -> None:
        """Closes the journal."""
        self.file.close()


def watch_batches(journal: Path) -> None:
    """Notes every batch that a training loader gives from now on, with a checksum of its content.

    For a program that is watched as a whole: all loaders of the process are.
    """
    import crc32c

    file, pull = open(journal, "a", encoding="utf-8"), LoaderSource.pull

    def watched(self: LoaderSource, reader: object | None = None) -> Any:
        batch, position = pull(self, reader)
        if self.name == "train":
            checksum = 0
            for leaf in jax.tree.leaves(batch):
                checksum = crc32c.crc32c(np.ascontiguousarray(leaf).tobytes(), checksum)
            place = [position.pass_index, position.batches]
            write_line(file, {"kind": "batch", "place": place, "checksum": checksum})
        return batch, position

    LoaderSource.pull = watched  # type: ignore[method-assign]


def write_line(file: IO[str], line: JSON) -> None:
    """Adds a line that is there even if the process is killed right after."""
    file.write(json.dumps(line) + "\n")
    file.flush()


def _leaves(state: Any) -> dict[str, Any]:
    return flatten_with_paths(state)


def _digest(leaf: jax.Array) -> str:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.device_get(jax.random.key_data(leaf) if is_key else leaf))
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

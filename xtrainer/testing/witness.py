"""What does a run do, step by step? A journal that survives a kill, written by a callback."""

import errno
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.callbacks import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.checkpoint import CheckpointManager, fingerprints
from xtrainer.checkpoint.under_way import Save
from xtrainer.data import LoaderSource
from xtrainer.loop import StopReason
from xtrainer.loop.ledger import Ledger
from xtrainer.tree import flatten_with_paths
from xtrainer.types import JSON, HostMetrics


@dataclass(frozen=True, kw_only=True)
class WitnessConfig(CallbackConfig):
    """Writes what each step has left behind, and how the run has ended."""

    journal: str = ""
    """The file; lines are added."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Witness":
        """Returns the callback."""
        return Witness(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns a journal that has no name."""
        found = super().problems()
        return found if self.journal else [*found, "journal: found '', expected a file."]


class _Ending(Protocol):
    """What is read of a trainer when its run has ended."""

    stop_reason: StopReason | None
    ledger: Ledger


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
        """Notes the state after a step."""
        leaves, now = fingerprints(self.trainer.state), time.time()
        write_line(self.file, {"kind": "step", "step": step_idx, "at": now, "leaves": leaves})

    def on_training_end(self) -> None:
        """Notes the state at the end, byte for byte."""
        leaves = {path: _digest(leaf) for path, leaf in _leaves(self.trainer.state).items()}
        step = self.trainer.progress.step
        write_line(self.file, {"kind": "end", "step": step, "leaves": leaves})

    def finalize(self, status: str) -> None:
        """Notes why the run has ended and where its time went, and closes the journal."""
        trainer = cast(_Ending, self.trainer)
        reason = "" if trainer.stop_reason is None else trainer.stop_reason.name
        write_line(
            self.file, {"kind": "stop", "reason": reason, "seconds": trainer.ledger.snapshot()}
        )
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


def watch_saves(journal: Path) -> None:
    """Notes every checkpoint that is begun from now on, and when it has become a step."""
    file = open(journal, "a", encoding="utf-8")
    save, commit = CheckpointManager.save, Save.commit

    def begun(self: CheckpointManager, step: int, *args: Any, **kwargs: Any) -> None:
        write_line(file, {"kind": "save", "step": step, "at": time.time()})
        save(self, step, *args, **kwargs)

    def done(self: Save, *args: Any) -> None:
        commit(self, *args)
        write_line(file, {"kind": "saved", "step": self.step, "at": time.time()})

    CheckpointManager.save = begun  # type: ignore[method-assign]
    Save.commit = done  # type: ignore[method-assign]


def write_line(file: IO[str], line: JSON, limit_s: float = 60.0) -> None:
    """Adds a line that is there even if the process is killed right after.

    On a full disk it waits for space: the journal tells of a run whose disk is full for a while.

    Raises:
        OSError: If it cannot be written, or there is no space for ``limit_s`` seconds.
    """
    file.write(json.dumps(line) + "\n")
    deadline = time.monotonic() + limit_s
    while True:
        try:
            file.flush()
            return
        except OSError as error:
            full = error.errno in (errno.EFBIG, errno.ENOSPC)
            if not full or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _leaves(state: Any) -> dict[str, Any]:
    return flatten_with_paths(state)


def _digest(leaf: jax.Array) -> str:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.device_get(jax.random.key_data(leaf) if is_key else leaf))
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

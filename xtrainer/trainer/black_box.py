"""What is kept of a step that was refused, and of a run that has died? Enough to look at it again.

The record of a refused step has

- ``why``: ``refused``, or ``error`` with the error's type, message and traceback;
- ``step``, ``epoch``, ``process``, ``versions``, and the newest ``rows`` of metrics;
- ``loader``: the position of the training loader before the batch of that step;
- ``rng``: the data of the key that the step folds its number into;
- ``batch``: shapes, dtypes and statistics, and in a file beside it the arrays, up to a limit;
- ``norms``: of each parameter and its gradient, with the parameters as they are when the step is
  known to be refused. Steps that were dispatched meanwhile have changed them, with the policy
  ``stop`` none has.

Of an error there are no batch and no norms: what it has left is not asked to compute.
"""

import logging
import math
import traceback
from collections import Counter, deque
from typing import Any

import jax

from xtrainer.checkpoint.items import library_versions
from xtrainer.config.redact import redact
from xtrainer.data import LoaderPosition
from xtrainer.launch import is_main_process, process_index
from xtrainer.step import PlacedBatch, make_norms_fn
from xtrainer.step.diagnose import jit_once
from xtrainer.trainer.box_files import (
    BATCH,
    FORMAT,
    batch_arrays,
    describe_batch,
    write_record,
)
from xtrainer.trainer.view import TrainerView
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_ROWS = 5
_LETTERS = 20_000


class BlackBox:
    """Writes records of a trainer's run.

    Args:
        trainer: What it tells of.
    """

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self._rows: deque[tuple[int, HostMetrics]] = deque(maxlen=_ROWS)
        self._written: Counter[str] = Counter()  # by run folder
        self._norms: Any = None

    def note_row(self, step: int, metrics: HostMetrics) -> None:
        """Remembers a row of metrics."""
        self._rows.append((step, metrics))

    def refused(self, step: int, batch: PlacedBatch, position: LoaderPosition) -> None:
        """Writes the record of a refused step; called on every process, and raises nothing.

        Args:
            step: Its number.
            batch: Its batch.
            position: Of the training loader before that batch.
        """
        if not self._takes_another():
            return
        try:
            with jax.transfer_guard("allow"), self._trainer.ledger.spent("logging"):
                facts = self._facts("refused", step, position)
                facts["rng"] = self._rng()
                limit = self._trainer.trainer_config.black_box_max_bytes
                arrays: Any = "black_box_max_bytes is 0."
                facts["batch"] = self._batch(batch)
                facts["norms"] = self._measure(step, batch)  # by all processes
                if is_main_process() and limit:
                    arrays = batch_arrays(batch.data, batch.row_mask, limit)
                kept = not isinstance(arrays, str)
                facts["batch"] |= {"file": BATCH} if kept else {"file": None, "note": arrays}
                self._write(facts, arrays if kept else None)
        except Exception as error:  # a record is a help, and no reason to end a run
            _LOG.warning("No record of step %d was written: %r", step, error)

    def died(self, error: BaseException) -> None:
        """Writes the record of a run that ends with an error; raises nothing."""
        trainer = self._trainer
        if not isinstance(error, Exception) or not self._is_wanted():
            return
        try:
            source = trainer.sources.positions().get("train")
            facts = self._facts("error", trainer.progress.step + 1, source)
            text = "".join(traceback.format_exception(error))  # without the values of variables
            kind, message = type(error).__qualname__, str(error)[:_LETTERS]
            facts["error"] = {"type": kind, "message": message, "traceback": text[-_LETTERS:]}
            self._write(facts, None)
        except Exception as other:
            _LOG.warning("No record of the error was written: %r", other)

    def _is_wanted(self) -> bool:
        return self._trainer.trainer_config.black_box and self._trainer.log_path is not None

    def _takes_another(self) -> bool:
        if not self._is_wanted():
            return False
        folder = str(self._trainer.log_path)
        self._written[folder] += 1
        return self._written[folder] <= self._trainer.trainer_config.black_box_max_records

    def _facts(self, why: str, step: int, position: LoaderPosition | None) -> dict[str, JSON]:
        progress = self._trainer.progress
        rows = [{"step": at, "metrics": _finite(row)} for at, row in self._rows]
        return {
            "format": FORMAT,
            "why": why,
            "step": step,
            "epoch": progress.epochs_done + 1,
            "process": process_index(),
            "progress": progress.to_json(),
            "loader": None if position is None else position.to_json(),
            "rows": rows,
            "versions": library_versions(),
        }

    def _rng(self) -> dict[str, JSON]:
        rng = self._trainer.state.rng
        data = jax.device_get(jax.random.key_data(rng)).tolist()
        return {"impl": str(jax.random.key_impl(rng)), "data": data}

    def _batch(self, batch: PlacedBatch) -> dict[str, JSON]:
        try:
            leaves: Any = describe_batch(batch.data)
        except Exception as error:
            leaves = {"note": repr(error)[:_LETTERS]}
        return {"rows": batch.rows, "examples": batch.examples, "leaves": leaves}

    def _measure(self, step: int, batch: PlacedBatch) -> dict[str, JSON]:
        trainer = self._trainer
        try:
            if self._norms is None:
                parts = (trainer.loss_function, trainer.model.apply, trainer.step_settings())
                self._norms = jit_once(make_norms_fn(*parts))
            state = trainer.state
            model = (state.params, state.mutable_variables)
            norms = self._norms(
                *model, batch.data, batch.row_mask, state.rng, step - 1, state.guard
            )
            return {name: _finite(tree) for name, tree in jax.device_get(norms).items()}
        except Exception as error:  # the device may have no memory left, for one
            return {"note": repr(error)[:_LETTERS]}

    def _write(self, facts: dict[str, JSON], arrays: Any) -> None:
        folder = self._trainer.log_path
        if folder is None or not is_main_process():
            return
        written = write_record(folder, redact(facts), arrays)
        if written is not None:
            what = "the refused step" if facts["why"] == "refused" else "the error"
            _LOG.warning(
                "%s tells of %s. `xtrainer replay %s --experiment FILE` looks for its cause.",
                written, what, folder,
            )  # fmt: skip


def _finite(numbers: Any) -> JSON:
    """Returns numbers by name as JSON, those that are not finite as text."""
    values = {name: float(value) for name, value in numbers.items()}
    return {n: value if math.isfinite(value) else repr(value) for n, value in values.items()}

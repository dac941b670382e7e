"""A run that is saved by some processes and goes on in others; it notes order, state and waits.

Arguments: the folder, and the step to train to. The run folder ``run`` in it holds what was saved.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import member
import mesh_zoo as mz
import probes
import zoo

import xtrainer as xt
from xtrainer.loop.in_flight import InFlight

ROWS, BATCH = 70, 16
"""Four whole batches and one of six rows, so that of four processes two have none of it."""
SAVED_AT, END = 7, 14
"""In the middle of the second pass, and near the end of the third."""


class Ordered(probes.Traced):
    """A classifier that logs which examples a step took."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, (metrics, rest) = super().loss_function(params, apply_fn, batch, rng, train)
        return loss, (metrics | mz.order_metrics(batch), rest)


class Terminal(io.StringIO):
    """Takes what would be drawn on a terminal."""

    def isatty(self) -> bool:
        """Says that it is one."""
        return True


def make_trainer(folder: Path, mesh: Any = None) -> Any:
    """Returns a trainer that divides its parameters over all devices, or has one device."""
    sizes = {"data_axis_size": 1, "fsdp_axis_size": -1} if mesh is None else {}
    return zoo.make_trainer(
        Ordered,
        model={"width": 8, "dropout": 0.3},
        optimizer=zoo.optimizer("sgd", 0.1, momentum=0.9),
        batch=probes.one(0, BATCH),
        mesh=mesh,
        parallel=xt.ParallelConfig(**sizes, fsdp_min_weight_size=1),
        logger=zoo.file_logger(folder / "run"),
        callbacks=[xt.ModelCheckpointConfig(save_last=True)],
        enable_progress_bar=True,
    )


def loader() -> xt.ArrayLoader:
    """Returns the training data, shuffled for each pass."""
    return xt.ArrayLoader(probes.examples(ROWS), batch_size=BATCH, shuffle=True, seed=5)


def state_of(trainer: Any) -> list[list[float]]:
    """Returns every number of the state that training changes, and its key."""
    state = trainer.state
    parts = (state.params, state.opt_state, state.step, jax.random.key_data(state.rng))
    return member.leaves(parts)


def go_on(folder: Path, step: int, mesh: Any = None) -> dict[str, Any]:
    """Trains to a step from where the run folder stands; returns what it found and left."""
    trainer = make_trainer(folder, mesh)
    trainer.load_model(raise_if_not_found=False)
    found = {"found": state_of(trainer), "found step": trainer.progress.step}
    memory = probes.Memory()
    write = trainer.logger.log_metrics

    def log_metrics(metrics: Any, at: int, mode: str, epoch: int) -> None:
        memory.log_metrics(metrics, at, mode, epoch)
        write(metrics, at, mode, epoch)

    trainer.logger.log_metrics = log_metrics
    trainer.train_model(loader(), xt.ArrayLoader(probes.examples(5), BATCH), num_train_steps=step)
    order = [[at, row["ids_sum"], row["id_squares_sum"]] for at, row in memory.rows()]
    parts = jax.tree.leaves(trainer.state.params)
    divided = sum(not leaf.is_fully_replicated for leaf in parts)
    return {**found, "left": state_of(trainer), "order": order, "divided": divided}


@contextmanager
def waits() -> Iterator[list[int]]:
    """Gives the steps of the reports that are read inside, in order."""
    read: list[int] = []
    fetch = InFlight._read

    def noting(self: InFlight) -> None:
        fetch(self)
        read.append(self.newest.step)

    InFlight._read = noting  # type: ignore[method-assign]
    try:
        yield read
    finally:
        InFlight._read = fetch  # type: ignore[method-assign]


def late_reports() -> dict[str, Any]:
    """Returns for each step of a run without rows which report had been read after it."""
    trainer = zoo.make_trainer(
        Ordered,
        batch=probes.one(0, BATCH),
        logger=xt.LoggerConfig(log_every_n_steps=100, log_tools=[]),
        max_steps_in_flight=3,
    )
    trainer.logger = probes.Memory()
    newest: list[int] = []
    dispatch = trainer.compiled_train_step
    with waits() as read:

        def step(*args: Any) -> Any:
            newest.append(read[-1] if read else 0)
            return dispatch(*args)

        trainer.compiled_train_step = step
        for name in ("new_window", "programs", "ahead", "flatten"):
            setattr(step, name, getattr(dispatch, name))
        trainer.train_model(loader(), num_train_steps=ROWS // BATCH)
    return {"newest": newest, "read": read}


def play(own: member.Member) -> dict[str, Any]:
    """Returns what the run did, and what it drew."""
    sys.stderr, stderr = Terminal(), sys.stderr
    try:
        found = go_on(own.folder, int(sys.argv[2]))
        found["drawn"] = sys.stderr.getvalue()
    finally:
        sys.stderr = stderr
    return {**found, **late_reports()}


if __name__ == "__main__":
    this = member.join()
    this.record("run", this.play("run", play))

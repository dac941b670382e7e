"""A training job that is started again and again: it goes on where it can, and says what it did.

Arguments: the folder, and settings of :class:`Job` as JSON. The variable ``CHAOS`` of its
environment may hold the fault of this start, for example ``record:3``: it kills itself when the
moment ``record`` of a save is reached for the third time; with ``SIGTERM@record:3`` it sends itself
that signal instead.
"""

import csv
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mutants
import numpy as np
import optax
import probes
import zoo

import xtrainer as xt
from xtrainer.checkpoint import commit
from xtrainer.launch import process_count, process_index
from xtrainer.loggers import file
from xtrainer.types import PyTree

HOOKS = (
    "on_training_start",
    "on_training_epoch_start",
    "on_training_step",
    "on_training_log",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_epoch_logged",
    "on_training_epoch_end",
    "on_training_end",
    "finalize",
)
"""What a job can be killed in; as ``after.NAME``, when all callbacks were called."""
ROWS, BATCH = 470, 16
"""29 whole batches and one of six rows."""


@dataclass(frozen=True)
class Job:
    """Settings.

    Attributes:
        steps: In all; not a multiple of any interval, so that rows and saves are open at the end.
        accumulate: Micro-batches of a batch.
        save_every: Steps between saves.
        loader: ``array``, ``grain`` or ``workers``, which is Grain with a worker process.
        pause_s: Added to each step, so that kills come at every moment of one.
        devices: Devices used, of all processes.
        batch_norm: Whether the model keeps batch statistics; of several processes it cannot with
            a last batch of fewer rows.
    """

    steps: int = 205
    accumulate: int = 1
    save_every: int = 7
    loader: str = "array"
    pause_s: float = 0.004
    devices: int = 2
    batch_norm: bool = True


class Journal:
    """Appends a line at once for everything that happens in any start of the job."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"journal.{process_index()}.jsonl"
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, step: int = 0) -> None:
        """Adds a line."""
        line = {"what": what, "step": step, "at": time.time(), "pid": os.getpid()}
        os.write(self.file, (json.dumps(line) + "\n").encode())


class Faults:
    """Sends a signal when the moment that ``CHAOS`` names has come as often as it says."""

    def __init__(self, journal: Journal, plan: str) -> None:
        self.journal = journal
        name, _, plan = plan.rpartition("@")
        self.number = signal.Signals[name or "SIGKILL"]
        self.moment, _, count = plan.partition(":")
        self.count = int(count or 1)
        self.seen: Counter[str] = Counter()
        self.step: Callable[[], int] = lambda: 0

    def reached(self, moment: str) -> None:
        """Counts a moment, and ends the process there where it is the one."""
        self.seen[moment] += 1
        if moment == self.moment and self.seen[moment] == self.count:
            self.journal.note("kill", self.step())
            os.kill(os.getpid(), self.number)


class Watching(xt.Callback):
    """Tells of every hook that is called, and slows the steps down."""

    def __init__(self, trainer: Any, faults: Faults, prefix: str, pause_s: float) -> None:
        super().__init__(xt.CallbackConfig(), trainer)
        self.faults, self.prefix, self.pause_s = faults, prefix, pause_s

    def called(self, hook: str) -> None:
        """Notes a call."""
        journal, step = self.faults.journal, self.trainer.progress.step
        if hook == "on_training_step" and not self.prefix:
            journal.note("step", step)
            time.sleep(self.pause_s)
        if hook == "on_training_start" and not self.prefix:
            journal.note("training", step)
            print("training", flush=True)
        self.faults.reached(self.prefix + hook)


def _calling(hook: str) -> Callable[..., None]:
    def call(self: Watching, *args: Any) -> None:
        self.called(hook)

    return call


for _name in HOOKS:
    setattr(Watching, _name, _calling(_name))


class Ordered(probes.Traced):
    """A classifier with BatchNorm and dropout that logs which examples a step took."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, (metrics, rest) = super().loss_function(params, apply_fn, batch, rng, train)
        ids, ones = batch["ids"], jnp.ones_like(batch["ids"])
        modes = ["sum", "single", "min", "max"]
        order = {
            name: {"value": value, "count": ones, "log_modes": modes}
            for name, value in (("ids", ids), ("id_squares", jnp.square(ids)))
        }
        return loss, (metrics | order, rest)


def averaged(decay: float) -> optax.GradientTransformation:
    """Returns a transformation that only keeps a running average of the parameters."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        new = optax.apply_updates(params, updates)
        mix = lambda old, now: decay * old + (1 - decay) * now  # noqa: E731
        return updates, jax.tree.map(mix, state, new)

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.array, params), update)


def make_trainer(folder: Path, job: Job) -> Any:
    """Returns the trainer of a job; all that it keeps is in ``run`` of the folder."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.02, 20, job.steps)
    return zoo.make_trainer(
        Ordered,
        model={"width": 8, "batch_norm": job.batch_norm, "dropout": 0.3},
        optimizer=optax.chain(optax.adamw(rate, weight_decay=0.01), averaged(0.9)),
        batch=probes.one(0, BATCH),
        mesh=xt.build_mesh(xt.ParallelConfig(), jax.devices()[: job.devices]),
        gradient_accumulate_steps=job.accumulate,
        check_val_every_n_steps=20,
        logger=zoo.file_logger(folder / "run", 3),
        callbacks=[
            xt.LearningRateMonitorConfig(),
            xt.ModelCheckpointConfig(monitor="loss", every_n_steps=job.save_every),
        ],
    )


def make_loader(job: Job) -> Any:
    """Returns the training data, in another order for each pass."""
    data = probes.examples(ROWS)
    if job.loader == "array":
        return xt.ArrayLoader(data, BATCH, shuffle=True, seed=5)
    samples = [{name: values[i] for name, values in data.items()} for i in range(ROWS)]
    workers = 1 if job.loader == "workers" else 0
    return xt.GrainLoader(samples, BATCH, shuffle=True, seed=5, num_workers=workers)


def hashed(tree: Any) -> str:
    """Returns the SHA-256 of all numbers of a tree, with its structure."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(zoo.host(tree)):
        head = (jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape)
        digest.update(repr(head).encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def rows_of(folder: Path) -> list[list[Any]]:
    """Returns the logged rows without measured times."""
    found = []
    for row in xt.read_metrics(folder):
        metrics = {k: v for k, v in row["metrics"].items() if not k.endswith("time_s")}
        found.append([row["set"], row["step"], row["epoch"], metrics])
    return found


def tables_of(folder: Path) -> str:
    """Returns the SHA-256 of the CSV files without measured times."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("metrics_*.csv")):
        digest.update(path.name.encode())
        with open(path, encoding="utf-8", newline="") as table:
            for row in csv.DictReader(table):
                kept = {k: v for k, v in row.items() if not str(k).endswith("time_s")}
                digest.update(json.dumps(kept).encode())
    return digest.hexdigest()


def record_of(trainer: Any, folder: Path) -> dict[str, Any]:
    """Returns all by which two runs are compared."""
    state = trainer.state
    leaves = jax.tree.leaves(zoo.host(state.params))
    names = ("params", "opt_state", "mutable_variables", "rng", "guard", "step")
    rows = rows_of(folder / "run")
    order = [[step, {k: v for k, v in m.items() if "id" in k}] for s, step, _, m in rows]
    return {
        **{name: hashed(getattr(state, name)) for name in names},
        "numbers": [number for leaf in leaves for number in leaf.ravel().tolist()],
        "progress": trainer.progress.to_json(),
        "rows": json.loads(json.dumps(rows)),
        "order": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
        "tables": tables_of(folder / "run"),
        "kept": sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()),
    }


def watch_rows(faults: Faults) -> None:
    """Tells when a resumed run takes back rows: ``retiring``, then ``retired``."""
    retire = file.retire_rows

    def watched(*args: Any) -> bool:
        faults.reached("retiring")
        any_retired = retire(*args)
        faults.reached("retired")
        return any_retired

    file.retire_rows = watched


def train(folder: Path, job: Job, journal: Journal, faults: Faults) -> dict[str, Any] | None:
    """Trains from wherever the folder stands; returns the record, None before the end."""
    trainer = make_trainer(folder, job)
    faults.step = lambda: trainer.progress.step
    trainer.callbacks.insert(0, Watching(trainer, faults, "", job.pause_s))
    trainer.callbacks.append(Watching(trainer, faults, "after.", 0))

    def watcher(moment: str) -> None:
        journal.note(moment, trainer.progress.step)
        faults.reached(moment)

    commit.watcher = watcher
    watch_rows(faults)
    val = xt.ArrayLoader({**probes.one(1, 20), "ids": np.arange(20, dtype=np.float32)}, BATCH)
    trainer.train_model(make_loader(job), val, num_train_steps=job.steps)
    journal.note("trained", trainer.global_step)
    return record_of(trainer, folder) if trainer.stop_reason.completed else None


def main() -> None:
    """Runs the job in this process."""
    folder, job = Path(sys.argv[1]), Job(**json.loads(sys.argv[2]))
    xt.initialize()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    journal = Journal(folder)
    journal.note("start")
    mutants.apply()
    record = train(folder, job, journal, Faults(journal, os.environ.get("CHAOS", "")))
    if record is None:
        return
    if process_index() == 0:
        part = folder / "record.json.part"
        part.write_text(json.dumps({**record, "processes": process_count()}), encoding="utf-8")
        os.replace(part, folder / "record.json")
    journal.note("end")


if __name__ == "__main__":
    main()

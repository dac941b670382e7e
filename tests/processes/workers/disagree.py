"""Scenarios in which one process of a run differs from the others, and all agree on the end.

A scenario is named ``WHAT-WHO``; WHO are the numbers of the processes that differ. A process alone
always does, so that the same scenario gives the run on one device to compare with.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import member
import numpy as np
import probes
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.launch.folder_lock import FolderLock

ROWS, BATCH, BATCHES = 80, 16, 5
SAID = "this process has had enough"


class NoLength:
    """Batches that can be read again and have no length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class OtherLength(NoLength):
    """Batches with a length that is given, right or wrong."""

    def __init__(self, batches: list[Any], length: int) -> None:
        super().__init__(batches)
        self.length = length

    def __len__(self) -> int:
        return self.length


class Breaking:
    """A loader that fails after some batches; it knows its length."""

    def __init__(self, own: member.Member, batches: list[Any], after: int) -> None:
        self.own, self.batches, self.after = own, batches, after

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches[: self.after]
        self.own.fails()
        raise ValueError("the loader broke here")


class Stage:
    """A trainer of this process that begins again for every scenario, compiled only once."""

    def __init__(self, **config: Any) -> None:
        self.shard = xt.types.DataShard()
        config = {"batch": probes.one(0, BATCH), "mesh": None, **config}
        optimizer = zoo.optimizer("sgd", 0.1, momentum=0.9)
        trainer = probes.traced(model={"width": 4, "dropout": 0.3}, optimizer=optimizer, **config)
        self.shard = trainer.batch_layout.shard
        self.repeatable = probes.Repeatable(trainer)

    def begin(self, own: member.Member, name: str, *callbacks: Any, **config: Any) -> Any:
        """Returns the trainer as new; it saves every other step where a name is given."""
        saving = []
        if name:
            folder = str(own.folder / name / "checkpoints")
            saving = [xt.ModelCheckpointConfig(log_path=folder, every_n_steps=2, max_to_keep=None)]
        trainer = self.repeatable.begin(*saving, *callbacks, **config)
        trainer.sources.shard = self.shard  # the loaders' places are forgotten, this is not
        return trainer

    def loader(self) -> xt.ArrayLoader:
        """Returns the training data, shuffled."""
        return xt.ArrayLoader(probes.examples(ROWS), batch_size=BATCH, shuffle=True, seed=5)

    def batches(self, bad: int | None = None) -> list[Any]:
        """Returns this process's part of the first pass; the batch ``bad`` holds NaN."""
        loader = self.loader()
        loader.set_shard(self.shard)
        batches = list(loader)
        if bad is not None:
            batches[bad] = {**batches[bad], "inputs": np.full_like(batches[bad]["inputs"], np.nan)}
        return batches


def train(own: member.Member, trainer: Any, name: str, *loaders: Any, **plan: Any) -> Any:
    """Trains, and returns where the trainer stands then and what was raised."""
    error, text = None, ""
    try:
        trainer.train_model(*loaders, **(plan or {"num_epochs": 2}))
    except Exception as raised:
        error = type(raised).__name__
        text = "".join(traceback.format_exception(raised))
    progress, reason = trainer.progress, trainer.stop_reason
    stands = {
        "reason": None if reason is None else reason.name,
        "detail": trainer.stop_detail,
        "step": [progress.step, int(jax.device_get(trainer.state.step))],
        "progress": [progress.epochs_done, progress.step_in_epoch, progress.examples],
        "skipped": progress.skipped,
        "position": trainer.sources.positions()["train"].batches,
        "params": member.leaves(trainer.state.params),
        "ids": trainer.logger.column("id"),
    }
    steps = list_steps(own.folder / name / "checkpoints")
    return {"stands": stands, "steps": steps, "raised": error, "traceback": text}


Scenario = Callable[[Stage, member.Member, str, str], Any]
"""From (stage, this process, who differs, name of the scenario)."""


def plain(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    return train(own, stage.begin(own, ""), "", stage.loader())


def _uneven(make: Callable[[list[Any], bool], Any]) -> Scenario:
    def scenario(stage: Stage, own: member.Member, who: str, name: str) -> Any:
        batches, differs = stage.batches(), own.is_one_of(who)
        loader = make(batches[: BATCHES - 1] if differs else batches, differs)
        return train(own, stage.begin(own, name), name, loader)

    return scenario


def length_too_small(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    length = BATCHES - 1 if own.is_one_of(who) else BATCHES
    return train(own, stage.begin(own, ""), "", OtherLength(stage.batches(), length))


def breaking_loader(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    batches = stage.batches()
    loader = Breaking(own, batches, after=2) if own.is_one_of(who) else batches
    return train(own, stage.begin(own, name), name, loader)


def breaking_first(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    batches = stage.batches()
    loader = Breaking(own, batches, after=0) if own.is_one_of(who) else batches
    return train(own, stage.begin(own, name), name, loader)


def breaking_validation(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    val = stage.batches()
    if own.is_one_of(who):
        val = Breaking(own, val, after=1)
    trainer = stage.begin(own, name, check_val_every_n_steps=3)
    return train(own, trainer, name, stage.loader(), val)


def breaking_step_hook(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    def act(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == 3 and own.is_one_of(who):
            own.fails()
            raise ValueError("the hook broke here")

    trainer = stage.begin(own, name, probes.acting("on_training_step", act))
    return train(own, trainer, name, stage.loader())


def breaking_logger(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    trainer = stage.begin(own, name)

    class Broken(probes.Memory):
        def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
            if step == 3:
                own.fails()
                raise ValueError("the logger broke here")
            super().log_metrics(metrics, step, mode, epoch)

    if own.is_one_of(who):
        trainer.logger = Broken()
    return train(own, trainer, name, stage.loader())


def hook_breaks_and_other_stops(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    def act(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == 3 and own.is_one_of(who):
            own.fails()
            raise ValueError("the hook broke here")
        if step == 3:
            trainer.request_stop(detail=SAID)

    trainer = stage.begin(own, name, probes.acting("on_training_step", act))
    return train(own, trainer, name, stage.loader())


def _stopping(hook: str, at: int, **plan: Any) -> Scenario:
    def scenario(stage: Stage, own: member.Member, who: str, name: str) -> Any:
        def act(trainer: Any, *args: Any) -> None:
            if trainer.global_step == at and own.is_one_of(who):
                trainer.request_stop(detail=SAID)

        every = {"check_val_every_n_steps": 4} if "validation" in hook else {}
        trainer = stage.begin(own, name, probes.acting(hook, act), **every)
        return train(own, trainer, name, stage.loader(), stage.loader(), **plan)

    return scenario


def early_stopping(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    config = xt.EarlyStoppingConfig(monitor="loss", mode="max", patience=-1, patience_steps=2)
    trainer = stage.begin(own, name, config, check_val_every_n_steps=1)
    return train(own, trainer, name, stage.loader(), stage.loader())


def nan(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    # Processes that hold the same rows have the same NaN in them.
    concerned = own.is_one_of(who) or stage.shard.count == 1
    batches = stage.batches(bad=2 if concerned else None)
    trainer = stage.begin(own, name, folder=own.folder / name / "run")
    trainer.logger = probes.Memory()
    return train(own, trainer, name, batches, num_epochs=1)


def other_configs(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    differs = own.is_one_of(who)
    zoo.make_trainer(model={"width": 6 if differs else 4}, seed=int(differs))


def other_plan(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    steps = 3 + own.is_one_of(who)
    return train(own, stage.begin(own, ""), "", stage.loader(), num_train_steps=steps)


def other_step(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    trainer = stage.begin(own, "")
    trainer.progress.step = int(own.is_one_of(who))
    return train(own, trainer, "", stage.loader())


def folder_in_use(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    lock = FolderLock(own.folder / name / "checkpoints") if own.is_one_of(who) else None
    try:
        stage.begin(own, name).train_model(stage.loader(), num_epochs=1)
    finally:
        if lock is not None:
            lock.release()


def other_data(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    stage.begin(own, name).train_model(stage.loader(), num_train_steps=2)
    loader = stage.loader()
    if own.is_one_of(who):
        arrays = {key: leaf[::-1] for key, leaf in loader.arrays.items()}
        loader = xt.ArrayLoader(arrays, batch_size=BATCH, shuffle=True, seed=5)
    return train(own, stage.begin(own, name), name, loader, num_train_steps=4)


def scalar_loss(stage: Stage, own: member.Member, who: str, name: str) -> Any:
    rows = BATCH // stage.shard.count
    last = rows - 2 if own.is_one_of(who) else rows
    batches = [zoo.classification_data(rows), zoo.classification_data(last)]
    trainer = zoo.make_trainer(zoo.ScalarClassifier)
    try:
        trainer.train_model(batches, num_epochs=1)
    finally:
        own.record(f"{name}.step", trainer.progress.step)


STEP, VALIDATION = "on_training_step", "on_validation_epoch_end"
SCENARIOS: dict[str, Scenario] = {
    "plain": plain,
    "list": _uneven(lambda batches, differs: batches),
    "no_length": _uneven(lambda batches, differs: NoLength(batches)),
    "some_length": _uneven(lambda batches, differs: batches if differs else NoLength(batches)),
    "length_too_large": _uneven(lambda batches, differs: OtherLength(batches, BATCHES)),
    "length_too_small": length_too_small,
    "loader": breaking_loader,
    "first_batch": breaking_first,
    "validation_loader": breaking_validation,
    "step_hook": breaking_step_hook,
    "logger": breaking_logger,
    "hook_and_stop": hook_breaks_and_other_stops,
    "stop": _stopping(STEP, 3),
    "stop_at_epoch_end": _stopping("on_training_epoch_end", 5),
    "stop_in_validation": _stopping(VALIDATION, 4),
    "stop_on_last": _stopping(STEP, 6, num_train_steps=6),
    "early_stopping": early_stopping,
    "nan": nan,
    "skipped_nan": nan,
    "configs": other_configs,
    "plan": other_plan,
    "step": other_step,
    "folder": folder_in_use,
    "data": other_data,
    "scalar": scalar_loss,
}


class Play:
    """The scenarios on the stages they need.

    Args:
        axes: ``"dp"``, or ``"tp"`` for a tensor axis over all devices: then every process has every
            row.
    """

    def __init__(self, axes: str = "dp") -> None:
        sizes = {"data_axis_size": 1, "model_axis_size": -1} if axes == "tp" else {}
        self._parallel = xt.ParallelConfig(**sizes)
        self._stages: dict[str, Stage] = {}

    def stage(self, scenario: str) -> Stage:
        """Returns the trainer that refuses steps and goes on, or the one that stops then."""
        policy = "skip" if scenario.startswith("skipped") else "stop"
        if policy not in self._stages:
            self._stages[policy] = Stage(nonfinite_policy=policy, parallel=self._parallel)
        return self._stages[policy]

    def __call__(self, name: str, own: member.Member) -> Any:
        """Returns what came of a scenario, by its full name."""
        scenario, who = name.split("-")
        return SCENARIOS[scenario](self.stage(scenario), own, who, name)


if __name__ == "__main__":
    play = Play(sys.argv.pop(2))
    member.play_all({name: lambda own, name=name: play(name, own) for name in sys.argv[2:]})

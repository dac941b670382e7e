"""Is time that is planted in a part of a run found in the account of that part?"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import commit
from xtrainer.loop import Ledger
from xtrainer.report import read_run
from xtrainer.report.starts import starts_of

PLANTED_S = {"data_wait": 3.0, "callbacks": 2.0, "logging": 4.0, "checkpoint": 5.0}
WITHIN = 0.02
"""Of the whole run."""
ACCOUNTS = tuple(PLANTED_S)
STEPS = 4


class Sleeps:
    """A clock by which all but planted sleeps takes a hundredth of its time.

    So what a busy machine adds to the files of a save, for one, is not more than a test allows.
    """

    def __init__(self) -> None:
        self.left: set[str] = set()
        self.slept_s = 0.0

    def __call__(self) -> float:
        return time.perf_counter() / 100 + self.slept_s

    def arm(self) -> None:
        self.left = set(ACCOUNTS)

    def sleep(self, account: str) -> None:
        """Sleeps, once for each account when that is armed."""
        if account in self.left:
            self.left.remove(account)
            self.slept_s += PLANTED_S[account]


SLEEPS = Sleeps()


class SlowLoader:
    """Batches without end, one of which may take long."""

    def __iter__(self) -> Iterator[Any]:
        batch = zoo.classification_data(16)
        while True:
            SLEEPS.sleep("data_wait")
            yield batch


@dataclass(frozen=True, kw_only=True)
class SlowConfig(xt.CallbackConfig):
    """A callback that may take long."""

    def create(self, trainer: Any, data_module: Any = None) -> xt.Callback:
        return Slow(self, trainer, data_module)


class Slow(xt.Callback):
    """See there."""

    def on_training_epoch_end(self, train_metrics: Any, epoch_idx: int) -> None:
        SLEEPS.sleep("callbacks")


@dataclass(frozen=True, kw_only=True)
class SlowToolConfig(xt.LoggerToolConfig):
    """A logger that may take long."""

    def create(self, folder: Path | None) -> xt.LoggerTool:
        return SlowTool()


class SlowTool(xt.LoggerTool):
    """See there."""

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        SLEEPS.sleep("logging")


def slow_save(moment: str) -> None:
    if moment == "meta":
        SLEEPS.sleep("checkpoint")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that has compiled all that it needs."""
    found = zoo.make_trainer(
        logger=zoo.file_logger(tmp_path_factory.mktemp("run"), 2, SlowToolConfig()),
        callbacks=[SlowConfig(), xt.ModelCheckpointConfig(enable_async_checkpointing=False)],
        mesh=zoo.devices(1),
    )
    train(found)
    found.ledger = Ledger(SLEEPS)  # whose time is the clock's from the next run on
    train(found)
    return found


def train(trainer: Any) -> tuple[dict[str, float], float]:
    """Takes some more steps; returns seconds by account as the report has them, and all of them."""
    begun = SLEEPS()
    steps = trainer.global_step + STEPS
    trainer.train_model(SlowLoader(), num_train_steps=steps, steps_per_epoch=STEPS)
    passed_s = SLEEPS() - begun
    return starts_of(read_run(trainer.log_path))[-1].seconds, passed_s


def test_planted_sleeps_are_found_where_they_were(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "watcher", slow_save)
    SLEEPS.arm()
    seconds, passed_s = train(trainer)
    assert SLEEPS.left == set()
    assert sum(seconds.values()) == pytest.approx(passed_s, rel=WITHIN)
    planted_s = sum(PLANTED_S.values())
    assert passed_s == pytest.approx(planted_s, rel=WITHIN)
    for account, found in seconds.items():
        assert abs(found - PLANTED_S.get(account, 0.0)) <= WITHIN * planted_s, account

"""Does a person learn what has run, how good it became and where the time went?"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.loggers import NullLogger
from xtrainer.trainer import overview, parts

VAL = probes.numbered(1, first=100)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced(nonfinite_policy="skip"))


def summaries(trainer: Any) -> list[tuple[int, dict[str, str]]]:
    """Lets the summaries that the logger of a trainer is given be gathered in a list."""
    found: list[tuple[int, dict[str, str]]] = []

    def note(key: str, text: str, step: int) -> None:
        assert key == "training_summary"
        pairs = (line.split("  ", maxsplit=1) for line in text.splitlines())
        found.append((step, {name.strip(): value.strip() for name, value in pairs}))

    trainer.logger.log_text = note
    return found


def test_a_run_ends_with_its_summary(stage: probes.Repeatable, tmp_path: Path) -> None:
    checkpoint = xt.ModelCheckpointConfig(monitor="loss", log_path=str(tmp_path))
    trainer = stage.begin(checkpoint)
    found = summaries(trainer)
    results = trainer.train_model(probes.numbered(3, bad=[2]), VAL, VAL, num_epochs=2)
    ((step, facts),) = found
    assert step == 6
    assert facts["ended"] == xt.StopReason.FINISHED.value
    assert (facts["steps"], facts["epochs"], facts["examples"]) == ("6", "2", "24")
    assert (facts["refused steps"], facts["validations"]) == ("2", "2")
    best = trainer.progress.best["loss"]
    place = f"step {best['step']}, epoch {best['epoch']}, {tmp_path / str(best['step'])}"
    assert facts["best loss"] == f"{best['value']:.6g}, {place}"
    assert facts["test, step 6"] == ", ".join(f"{k} {v:.6g}" for k, v in results["test"].items())
    assert facts["val, step 6"].startswith(f"loss {results['val_epoch_2']['loss']:.6g}, id 100")
    assert "time_s" in facts["val, step 6"]
    assert facts["train_epoch, step 6"].startswith("loss ")
    assert "step " in facts["time"] and "%" in facts["time"]


def test_what_there_was_none_of_is_left_out(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    found = summaries(trainer)
    trainer.train_model(probes.numbered(2), num_epochs=1)
    assert list(found[0][1]) == [
        "ended", "steps", "epochs", "examples", "train_epoch, step 2", "time"
    ]  # fmt: skip


def test_a_run_that_was_stopped_says_why(stage: probes.Repeatable) -> None:
    stop = lambda trainer, *_: trainer.request_stop(detail="It is enough.")  # noqa: E731
    trainer = stage.begin(probes.acting("on_training_step", stop))
    found = summaries(trainer)
    trainer.train_model(probes.numbered(2), num_epochs=1)
    assert found[0][1]["ended"] == f"{xt.StopReason.REQUESTED.value} It is enough."


def test_after_an_error_it_tells_how_far_the_run_came(stage: probes.Repeatable) -> None:
    def fail(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("a mistake")

    trainer = stage.begin(probes.acting("on_training_step", fail))
    found = summaries(trainer)
    with pytest.raises(RuntimeError, match="a mistake") as caught:
        trainer.train_model(probes.numbered(3), num_epochs=1)
    ((step, facts),) = found
    assert step == 2 and facts["steps"] == "2" and "a mistake" in facts["ended"]
    assert not getattr(caught.value, "__notes__", [])


def test_an_error_in_the_summary_hides_no_error_before_it(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = lambda trainer, *_: 1 / 0  # noqa: E731
    trainer = stage.begin(probes.acting("on_training_step", fail))
    monkeypatch.setattr(trainer, "log_training_summary", lambda: [].pop())
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.train_model(probes.numbered(2), num_epochs=1)
    assert caught.value.__notes__ == ["While closing: IndexError: pop from empty list"]
    assert trainer.logger.statuses == ["failed"]


def test_a_run_that_never_began_has_no_summary(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    found = summaries(trainer)
    with pytest.raises(xt.XTrainerError):
        trainer.train_model([], num_epochs=1)
    assert found == []


def test_without_loggers_the_program_s_own_log_has_it(
    stage: probes.Repeatable, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = stage.begin()
    trainer.logger = NullLogger()
    with caplog.at_level(logging.INFO, logger="xtrainer.trainer.overview"):
        trainer.train_model(probes.numbered(2), num_epochs=1)
    assert any(line.startswith("examples") and line.endswith("8") for line in caplog.messages)


def test_many_metrics_are_cut_short(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.history.add("val", 3, 1, {f"m{number}": 1.0 for number in range(23)})
    facts = overview.summary_facts(trainer)
    assert facts["val, step 3"].endswith("m19 1, and 3 more")


# What a tracker is told of a run (S1).


class Told(xt.LoggerTool):
    """Keeps the order in which it was told what."""

    def __init__(self, calls: list[tuple[str, ...]]) -> None:
        self.calls = calls

    def open(self) -> None:
        """Notes it."""
        self.calls.append(("open",))

    def log_config(self, config: Any) -> None:
        """Notes it."""
        self.calls.append(("config",))

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        """Notes the set and the step."""
        self.calls.append(("metrics", mode, str(step)))

    def log_text(self, key: str, text: str, step: int) -> None:
        """Notes the key."""
        self.calls.append(("text", key))

    def finalize(self, status: str) -> None:
        """Notes the status."""
        self.calls.append(("finalize", status))


CALLS: list[tuple[str, ...]] = []


@dataclass(frozen=True, kw_only=True)
class ToldConfig(xt.LoggerToolConfig):
    """Describes it."""

    def create(self, folder: Path | None) -> xt.LoggerTool:
        """Returns it."""
        return Told(CALLS)


@pytest.mark.parametrize("is_main", [True, False])
def test_a_tracker_is_begun_told_and_closed_once_and_by_the_main_process_alone(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch, is_main: bool
) -> None:
    CALLS.clear()
    trainer = stage.begin(every=2)
    monkeypatch.setattr(parts, "is_main_process", lambda: is_main)
    monkeypatch.setattr(overview, "is_main_process", lambda: is_main)
    trainer.init_logger(
        xt.LoggerConfig(log_every_n_steps=2, log_tools=[ToldConfig()], write_interval_s=0.0)
    )
    trainer.train_model(probes.numbered(2), VAL, VAL, num_epochs=1)
    assert trainer.progress.step == 2
    rows = [("metrics", mode, "2") for mode in ("train", "train_epoch", "val", "test")]
    expected = [
        ("open",), ("config",), *rows, ("text", "training_summary"), ("finalize", "completed")
    ]  # fmt: skip
    assert CALLS == (expected if is_main else [])


def test_the_log_of_the_process_holds_it_once(stage: probes.Repeatable, tmp_path: Path) -> None:
    stage.begin(folder=tmp_path).train_model(probes.numbered(1), num_epochs=1)
    said = (tmp_path / "output_0.log").read_text()
    assert said.count("training_summary at step 1:") == 1 and "\nexamples" in said


# The parameters and the best values.


class Model(probes.Memory):
    """Keeps tables of parameters and best values."""

    def __init__(self) -> None:
        super().__init__()
        self.models: list[str] = []
        self.best: list[tuple[int, Any]] = []

    def log_model(self, table: str) -> None:
        """Keeps it."""
        self.models.append(table)

    def log_best(self, metrics: Any, step: int) -> None:
        """Keeps them."""
        self.best.append((step, dict(metrics)))


def test_loggers_are_given_the_parameters_and_the_best_value(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    saving = xt.ModelCheckpointConfig(monitor="loss", log_path=str(tmp_path))
    trainer = stage.begin(saving)
    trainer.logger = Model()
    results = trainer.train_model(probes.numbered(2), [probes.one(100)], num_epochs=2)
    (table,) = trainer.logger.models
    assert table == overview.tabulate(trainer) and "Dense_0/kernel" in table
    losses = [metrics["loss"] for metrics in results.values()]
    assert trainer.logger.best == [(4, {"loss": min(losses)})]


def test_without_a_monitored_metric_there_is_no_best_value(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.logger = Model()
    trainer.train_model(probes.numbered(1), num_epochs=1)
    assert trainer.logger.best == [] and len(trainer.logger.models) == 1

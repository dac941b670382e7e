"""A display on a terminal, plain lines elsewhere; nothing of it costs a step anything."""

import io
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import probes
import pytest

import xtrainer as xt
from xtrainer.callbacks import ProgressBar
from xtrainer.callbacks.progress_views import PlainView
from xtrainer.loggers import NullLogger

VAL = probes.numbered(3, first=100)
BAR = xt.ProgressBarConfig(min_interval_s=0.0)
THREAD = "progress-bar"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Returns what makes stderr a terminal; called in the test, since pytest resets stderr."""

    def make() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return make


def plain(stream: io.StringIO) -> str:
    """Returns what was written, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def drawn(stream: io.StringIO, title: str = "train") -> list[str]:
    """Returns the states that were shown as ``done/total``."""
    found = []
    for line in plain(stream).splitlines():
        match = re.search(rf"^{title}:.*?(\d+/\d+|\d+ steps)", line)
        if match and match.group(1) not in found[-1:]:
            found.append(match.group(1))
    return found


def done(stream: io.StringIO) -> list[int]:
    """Returns the steps that a bar has shown, one for each drawing."""
    return [int(re.findall(r"\d+", state)[0]) for state in drawn(stream)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def wait_until(condition: Callable[[], bool]) -> Callable[..., None]:
    """Returns what a hook may do: let time pass until something is so."""

    def wait(*args: Any) -> None:
        end = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            threading.Event().wait(0.001)

    return wait


@pytest.fixture(autouse=True)
def no_bar_is_left() -> Iterator[None]:
    """Fails a test that leaves a thread drawing."""
    yield
    assert threads() == []


def test_the_bar_begins_with_the_first_step_and_ends_with_the_last(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin(BAR).train_model(probes.numbered(3), num_epochs=2)
    states = drawn(stream)
    assert (states[0], states[-1]) == ("0/6", "6/6")
    assert done(stream) == sorted(done(stream))


def test_the_bar_moves_while_the_run_goes_on(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    trainer: Any = None
    wait = wait_until(lambda: done(stream)[-1] == trainer.global_step)
    trainer = stage.begin(BAR, probes.acting("on_training_step", wait))
    trainer.train_model(probes.numbered(3), num_epochs=2)
    assert drawn(stream) == [f"{step}/6" for step in range(7)]


def test_the_bar_waits_between_two_drawings(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    config = xt.ProgressBarConfig(min_interval_s=3600.0)
    stage.begin(config).train_model(probes.numbered(3), num_epochs=2)
    assert drawn(stream) == ["0/6", "6/6"]


def test_the_bar_costs_no_step_anything(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    terminal()
    trainer = stage.begin(BAR)
    assert [trainer.callbacks[0].next_step(step) for step in range(3)] == [None] * 3
    assert trainer.step_hooks() == []


def test_steps_are_dispatched_together_under_a_bar(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal()
    trainer = probes.Repeatable(probes.traced(steps_per_dispatch=4)).begin(BAR, every=4)
    executor, sizes = type(trainer.compiled_train_step), []
    many = executor.many

    def counted(self: Any, state: Any, batches: Any, *args: Any) -> Any:
        sizes.append(len(batches))
        return many(self, state, batches, *args)

    monkeypatch.setattr(executor, "many", counted)
    trainer.train_model(probes.numbered(8), num_epochs=1)
    assert sizes == [4, 4]
    assert drawn(stream)[-1] == "8/8"


def test_the_bar_shows_the_newest_loss_and_the_epoch(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    wait = wait_until(lambda: f"loss {trainer.logger.column('loss_mean')[-1]:.4g}" in plain(stream))
    trainer = stage.begin(BAR, probes.acting("on_epoch_logged", wait), every=2)
    trainer.train_model(probes.numbered(4), num_epochs=1)
    loss = trainer.logger.column("loss_mean")[-1]
    assert re.search(rf"epoch 1 · loss {loss:.4g} ", plain(stream))


def test_a_run_that_goes_on_begins_where_it_was(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    trainer, batches = stage.begin(BAR), probes.numbered(3)
    trainer.train_model(batches, num_epochs=1)
    stream = terminal()
    trainer.train_model(batches, num_epochs=2)
    states = drawn(stream)
    assert (states[0], states[-1]) == ("3/6", "6/6")
    assert done(stream) == sorted(done(stream))


def test_a_run_of_unknown_length_has_no_total(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin(BAR).train_model(probes.generate(probes.numbered(3)), num_epochs=1)
    assert drawn(stream)[-1] == "3 steps"


def test_an_error_leaves_the_bar_closed(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()

    def fail(*args: Any) -> None:
        raise ValueError("planted")

    trainer = stage.begin(BAR, probes.acting("on_training_step", fail))
    with pytest.raises(ValueError, match="planted"):
        trainer.train_model(probes.numbered(3), num_epochs=1)
    assert trainer.callbacks[0].view is None
    assert threads() == []
    assert drawn(stream)[-1] == "1/3"
    assert plain(stream).endswith(", failed\n")


def test_a_run_leaves_no_thread_and_has_one_while_it_goes_on(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    terminal()
    seen: list[tuple[int, bool]] = []

    def look(*args: Any) -> None:
        seen.append((len(threads()), all(thread.daemon for thread in threads())))

    trainer = stage.begin(BAR, probes.acting("on_training_step", look))
    for epochs in (1, 2):
        trainer.train_model(probes.numbered(2), num_epochs=epochs)
        assert threads() == []
    assert seen == [(1, True)] * 4


def test_where_there_is_no_terminal_nothing_is_drawn(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    seen: list[int] = []
    look = probes.acting("on_training_step", lambda *_: seen.append(len(threads())))
    trainer = stage.begin(BAR, look, enable_progress_bar=True)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    assert stream.getvalue() == ""
    assert seen == [0, 0, 0]


@pytest.mark.parametrize(("enabled", "bars"), [(True, 1), (False, 0)])
def test_a_trainer_adds_a_bar_where_bars_are_enabled(
    stage: probes.Repeatable, enabled: bool, bars: int
) -> None:
    trainer = stage.begin(enable_progress_bar=enabled)
    assert sum(isinstance(each, ProgressBar) for each in trainer.callbacks) == bars


def test_an_evaluation_has_a_bar_where_bars_are_enabled(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin().eval_model(VAL)
    assert stream.getvalue() == ""
    stage.begin(enable_progress_bar=True).eval_model(VAL)
    assert "/3 [" in stream.getvalue() and "val" in stream.getvalue()


def test_the_validation_and_its_metrics_are_shown(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    trainer: Any = None
    seen = wait_until(lambda: "validation at step 3: loss" in plain(stream))
    trainer = stage.begin(BAR, probes.acting("on_epoch_logged", after_validation(seen)))
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    metrics = dict(trainer.logger.rows("val"))[3]
    assert f"validation at step 3: loss {metrics['loss']:.4g}" in plain(stream)


def after_validation(wait: Callable[..., None]) -> Callable[..., None]:
    """Returns a hook that waits once a validation was logged."""
    return lambda trainer, mode, step: wait() if mode == "val" else None


@pytest.mark.parametrize("title", ["val", "test"])
def test_the_batches_of_an_evaluation_are_counted(
    stage: probes.Repeatable, terminal: Callable[[], Terminal], title: str
) -> None:
    stream = terminal()
    running: list[int] = []
    begun = probes.acting("on_training_step", lambda *_: running.append(1))
    seen = wait_until(lambda: not running or bool(drawn(stream, title)))
    trainer = stage.begin(begun, enable_progress_bar=True)
    trainer.callbacks[0] = ProgressBar(BAR, trainer)
    loader = Held(seen)
    sets = {"val_loader": loader} if title == "val" else {"test_loader": loader}
    trainer.train_model(probes.numbered(2), num_epochs=1, **sets)
    assert drawn(stream, title)
    assert all(state.endswith("/3") for state in drawn(stream, title))


class Held:
    """Three batches; the last of a pass comes when something is so."""

    def __init__(self, wait: Callable[..., None]) -> None:
        self.wait = wait

    def __len__(self) -> int:
        return len(VAL)

    def __iter__(self) -> Iterator[Any]:
        yield from VAL[:2]
        self.wait()
        yield VAL[2]


def test_checkpoints_and_refused_steps_are_shown(stage: probes.Repeatable) -> None:
    now = [100.0]
    trainer = stage.begin()
    bar = ProgressBar(BAR, trainer, clock=lambda: now[0])
    bar.on_checkpoint(1200)
    now[0], trainer.progress.skipped = 130.0, 2
    assert bar.facts().saved() == ["checkpoint at step 1,200, 30 s ago", "2 refused steps"]


def test_what_a_run_waits_for_is_shown_after_two_seconds(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage.begin()
    bar = ProgressBar(BAR, trainer)
    for age_s, expected in ((1.0, []), (65.0, ["waiting for data, 1:05 min"])):
        since = time.perf_counter() - age_s
        monkeypatch.setattr(trainer.ledger, "now", lambda since=since: ("data_wait", since))
        assert bar.facts().saved() == expected


def test_the_learning_rate_is_that_of_the_newest_row(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    bar = ProgressBar(xt.ProgressBarConfig(style="plain"), trainer)
    bar.on_training_start()
    bar.on_training_log({"loss_mean": 1.0}, 7)
    assert bar.facts().learning_rate == pytest.approx(trainer.learning_rate(7))
    bar.on_training_log({"loss_mean": 1.0, "learning_rate": 0.25}, 8)
    assert bar.facts().learning_rate == 0.25
    bar.finalize("completed")


def test_nothing_is_fetched_for_the_display(
    stage: probes.Repeatable, terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgressBar, "_keep_rate", lambda *_: None)  # see the next test
    counts: dict[bool, list[str]] = {}
    for shown in (False, True):
        fetched: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("device_get", "device_put", "block_until_ready"):
                patch.setattr(jax, name, counting(getattr(jax, name), fetched, name))
            stream = terminal()
            trainer = stage.begin(*([BAR] if shown else []), every=2)
            trainer.train_model(probes.numbered(6), VAL, num_epochs=2)
            assert (drawn(stream) != []) == shown
        counts[shown] = sorted(fetched)
    assert counts[True] == counts[False] != []


def counting(call: Callable[..., Any], calls: list[str], name: str) -> Callable[..., Any]:
    """Returns a function that notes its calls."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return call(*args, **kwargs)

    return counted


def test_a_learning_rate_is_computed_once_in_an_interval(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    now, asked = [0.0], []
    bar = ProgressBar(xt.ProgressBarConfig(style="plain"), trainer, clock=lambda: now[0])
    bar.on_training_start()
    trainer_rate, trainer.learning_rate = trainer.learning_rate, lambda step: asked.append(step)
    try:
        for now[0] in (1.0, 1.1, 1.2, 1.6):
            bar.on_training_log({"loss_mean": 1.0}, int(10 * now[0]))
    finally:
        trainer.learning_rate = trainer_rate
    assert asked == [10, 16]


def test_several_processes_have_plain_lines_on_a_terminal_too(
    stage: probes.Repeatable, terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal()
    monkeypatch.setattr("xtrainer.callbacks.progress_bar.process_count", lambda: 2)
    bar = ProgressBar(BAR, stage.begin())
    bar.on_training_start()
    assert isinstance(bar.view, PlainView)
    bar.finalize("completed")
    assert stream.getvalue() == ""


def test_without_a_logger_plain_lines_go_to_stderr(
    stage: probes.Repeatable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = xt.ProgressBarConfig(style="plain", max_line_interval_s=0.0)
    trainer = stage.begin(config, every=2)
    trainer.logger = NullLogger()
    trainer.train_model(probes.numbered(4), num_epochs=1)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert re.match(r"train: 4/4 \(100%\), .*epoch 1, loss \d", lines[-2]), lines
    assert re.match(r"train: 100% 4/4 steps in \d+ s, loss \d", lines[-1]), lines
    assert said.out == ""


def test_with_a_logger_plain_lines_say_no_row_again(
    stage: probes.Repeatable, caplog: pytest.LogCaptureFixture
) -> None:
    config = xt.ProgressBarConfig(style="plain", max_line_interval_s=0.0)
    with caplog.at_level("INFO", "xtrainer"):
        stage.begin(config, every=2).train_model(probes.numbered(4), num_epochs=1)
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("progress_views")]
    assert lines[-1].startswith("train: 4/4 (100%), ")
    assert not any("loss" in line or "lr " in line for line in lines)


@pytest.mark.parametrize("name", ["min_interval_s", "max_line_interval_s"])
def test_an_interval_below_zero_is_told(name: str) -> None:
    assert xt.ProgressBarConfig(**{name: -1.0}).problems() == [
        f"{name}: found -1.0, expected seconds >= 0."
    ]


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_end_of_a_run(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtrainer.callbacks.progress_bar._JOIN_S", 0.05)
    taken = threading.Event()

    class Stuck(Terminal):
        def write(self, text: str) -> int:
            if stuck:
                taken.wait(60)
            return super().write(text)

    stuck: list[int] = []
    monkeypatch.setattr("sys.stderr", stream := Stuck())
    trainer = stage.begin(BAR, probes.acting("on_training_step", lambda *_: stuck.append(1)))
    trainer.train_model(probes.numbered(3), num_epochs=1)
    assert trainer.global_step == 3
    assert sys.stderr is stream and len(threads()) == 1
    taken.set()
    wait_until(lambda: threads() == [])()

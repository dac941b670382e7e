"""A trace of exactly the steps that were asked for."""

from pathlib import Path
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.errors import ConfigError

Calls = list[tuple[str, Any]]


@pytest.fixture
def traces(stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The steps between which traces began and ended; nothing is traced."""
    calls: Calls = []
    trainer = stage.trainer
    monkeypatch.setattr(
        "jax.profiler.start_trace", lambda folder: calls.append(("start", trainer.global_step))
    )
    monkeypatch.setattr(
        "jax.profiler.stop_trace", lambda: calls.append(("stop", trainer.global_step))
    )
    return calls


def profiler(folder: Path, first: int, count: int, **config: int) -> xt.JaxProfilerConfig:
    return xt.JaxProfilerConfig(
        log_path=str(folder), profile_first_step=first, profile_n_steps=count, **config
    )


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        (1, 1, [("start", 0), ("stop", 1)]),
        (3, 2, [("start", 2), ("stop", 4)]),
        (2, 5, [("start", 1), ("stop", 6)]),
        (5, 9, [("start", 4), ("stop", 8)]),
        (8, 1, [("start", 7), ("stop", 8)]),
        (10, 5, []),
    ],
)
def test_the_trace_has_exactly_its_steps(
    stage: probes.Repeatable,
    tmp_path: Path,
    traces: Calls,
    first: int,
    count: int,
    expected: Calls,
) -> None:
    trainer = stage.begin(profiler(tmp_path, first, count))
    trainer.train_model(probes.numbered(4), num_epochs=2)
    assert traces == expected


@pytest.mark.parametrize(
    ("first", "count", "begun_at", "marks"),
    [
        (1, 1, 0, [1, None, None, None, None, None]),  # it begins before the first step
        (3, 2, 0, [2, 2, 4, 4, None, None]),
        (2, 1, 3, [4, 4, 4, 4, 5, None]),
    ],
)
def test_only_the_steps_that_begin_and_end_the_trace_are_asked_for(
    stage: probes.Repeatable,
    tmp_path: Path,
    traces: Calls,
    first: int,
    count: int,
    begun_at: int,
    marks: list[int | None],
) -> None:
    trainer = stage.begin(profiler(tmp_path, first, count))
    (made,) = trainer.callbacks
    trainer.progress.step = begun_at
    made.on_training_start()
    assert [made.next_step(step) for step in range(6)] == marks


def test_a_trace_lets_the_other_steps_be_dispatched_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = probes.Repeatable(probes.traced(steps_per_dispatch=4))
    trainer = stage.begin(profiler(tmp_path, 3, 4), every=100)
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "jax.profiler.start_trace", lambda folder: seen.append(("start", trainer.global_step))
    )
    monkeypatch.setattr(
        "jax.profiler.stop_trace", lambda: seen.append(("stop", trainer.global_step))
    )
    sizes: list[int] = []
    many = type(trainer.compiled_train_step).many

    def counted(self: Any, state: Any, batches: Any, *args: Any) -> Any:
        sizes.append(len(batches))
        return many(self, state, batches, *args)

    monkeypatch.setattr(type(trainer.compiled_train_step), "many", counted)
    trainer.train_model(probes.numbered(10), num_epochs=1)
    assert seen == [("start", 2), ("stop", 6)]
    assert sizes == [2, 4, 4]


def test_the_traced_steps_have_ended_when_the_trace_ends(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    trainer = stage.begin(profiler(tmp_path, 2, 2))
    waited: list[Any] = []
    monkeypatch.setattr("jax.block_until_ready", waited.append)
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: done.append(len(waited)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: done.append(len(waited)))
    trainer.train_model(probes.numbered(4), num_epochs=1)
    assert done == [1, 2]


def test_steps_are_counted_from_the_start_of_each_call(
    stage: probes.Repeatable, tmp_path: Path, traces: Calls
) -> None:
    trainer = stage.begin(profiler(tmp_path, 2, 1))
    for epochs in (1, 2):
        trainer.train_model(probes.numbered(4), num_epochs=epochs)
    assert traces == [("start", 1), ("stop", 2), ("start", 5), ("stop", 6)]


def test_every_step_is_counted_whatever_the_frequency(
    stage: probes.Repeatable, tmp_path: Path, traces: Calls
) -> None:
    trainer = stage.begin(profiler(tmp_path, 3, 2, every_n_steps=2))
    trainer.train_model(probes.numbered(8), num_epochs=1)
    assert traces == [("start", 2), ("stop", 4)]


def test_an_error_ends_the_trace(stage: probes.Repeatable, tmp_path: Path, traces: Calls) -> None:
    def fail(trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            raise ValueError("planted")

    trainer = stage.begin(profiler(tmp_path, 2, 5), probes.acting("on_training_step", fail))
    with pytest.raises(ValueError, match="planted"):
        trainer.train_model(probes.numbered(8), num_epochs=1)
    assert traces == [("start", 1), ("stop", 3)]


def test_the_trace_is_written_to_the_run_folder(stage: probes.Repeatable, tmp_path: Path) -> None:
    config = xt.JaxProfilerConfig(profile_first_step=2, profile_n_steps=1)
    make = lambda trainer: config.create(trainer)  # noqa: E731
    trainer = stage.begin(make, folder=tmp_path)
    trainer.train_model(probes.numbered(3), num_epochs=1)
    assert [path.suffix for path in (tmp_path / "profile").rglob("*.xplane.pb")] == [".pb"]


def test_without_a_folder_there_is_an_error_that_says_what_to_do(
    stage: probes.Repeatable,
) -> None:
    with pytest.raises(ConfigError, match="JaxProfiler: found no folder.*log_path"):
        stage.begin(xt.JaxProfilerConfig())


@pytest.mark.parametrize("field", ["profile_first_step", "profile_n_steps"])
def test_numbers_that_cannot_be_are_errors(field: str) -> None:
    config = xt.JaxProfilerConfig(**{field: 0})
    with pytest.raises(ConfigError, match=f"{field}: found 0, expected a number >= 1"):
        xt.check_configs(trainer=xt.TrainerConfig(callbacks=[config]))


def test_the_profiler_belongs_to_the_main_process() -> None:
    assert xt.JaxProfilerConfig().main_process_only

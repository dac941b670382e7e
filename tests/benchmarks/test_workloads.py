"""Do both sides do the same arithmetic? Each cheap workload once, with tiny sizes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import conduct
from benchmarks.against import FakeTerminal, Setting, train_in_turns
from benchmarks.bare import BareLoop
from benchmarks.models import Task, mlp_task
from benchmarks.workloads import (
    accumulate,
    checkpoint,
    devices,
    evaluation,
    gpt,
    guard,
    leaves,
    mlp,
    start,
)
from xtrainer.step.guard import all_finite


def assert_equal_params(trainer: Any, bare: Any) -> None:
    params = bare.params if isinstance(bare, BareLoop) else bare.state.params
    assert jax.tree.structure(trainer.state.params) == jax.tree.structure(params)
    for ours, theirs in zip(
        jax.tree.leaves(trainer.state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-6)


def plain(task: Task) -> Any:
    return lambda params: BareLoop.of(task, params)


@pytest.mark.parametrize("make", [BareLoop.of, BareLoop.guarded])
@pytest.mark.parametrize("case", list(mlp.settings(50, 1)))
def test_the_tiny_network_ends_with_the_parameters_of_the_bare_loop(case: str, make: Any) -> None:
    setting, task = mlp.settings(50, 1)[case], mlp_task(rows=8)
    pairs, trainer, bare = train_in_turns(task, setting, lambda params: make(task, params))
    assert trainer.global_step == 3 * setting.steps
    assert len(pairs.bare) == len(pairs.framework) == setting.repeats
    assert min(*pairs.bare, *pairs.framework) > 0
    assert_equal_params(trainer, bare)
    start = jax.tree.leaves(trainer.state.params)[0]
    assert not np.array_equal(np.asarray(start), 0 * np.asarray(start))


def test_the_two_sides_would_be_told_apart() -> None:
    task = mlp_task(rows=8)
    other = Task("other", task.model, task.optimizer, task.batches[1:])
    _, trainer, bare = train_in_turns(task, Setting(10, 1, log_every=10), plain(other))
    with pytest.raises(AssertionError):
        assert_equal_params(trainer, bare)


def test_the_progress_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(FakeTerminal, "write", lambda self, text: drawn.append(text) or len(text))
    task = mlp_task(rows=8)
    train_in_turns(task, Setting(10, 1, log_every=10, bar=True), plain(task))
    assert any("train" in text for text in drawn)


def test_the_rows_of_the_tiny_network() -> None:
    rows = mlp.measure(repeats=1, steps=50)
    cases = ["log every 50", "progress bar", "log every step", "steps_per_dispatch=32"]
    both = [name for case in cases for name in (case, f"{case}, same arithmetic")]
    assert [row.case for row in rows] == ["noise", *both[:2], "norms off", *both[2:]]
    assert all(row.ratio is not None and row.ratio.median > 0 for row in rows)


def test_accumulation_ends_with_the_parameters_of_the_bare_scan() -> None:
    task = mlp_task(rows=32)
    setting = Setting(3, 1, log_every=3, options={"gradient_accumulate_steps": 8})
    _, trainer, bare = train_in_turns(
        task, setting, lambda params: accumulate.make_loop(task, params, 8)
    )
    assert_equal_params(trainer, bare)


def test_the_memory_of_accumulation_is_compared() -> None:
    task = mlp_task(rows=4096)
    micro, whole = accumulate.memory(task, pieces=8)
    for row in (micro, whole):
        assert row.bare is not None and row.framework is not None and row.ratio is not None
        assert row.ratio.median == pytest.approx(row.framework.median / row.bare.median)
    assert micro.bare.median > 1 > whole.bare.median


def test_the_guard_alone_makes_the_difference_between_its_two_sides() -> None:
    task = mlp_task(rows=8)
    believing, guarded = guard.loops(task)
    assert min(loop.run(5) for loop in (believing, guarded)) > 0
    assert_equal_params(guarded, believing)
    bad = {**task.batches[0], "inputs": np.full_like(task.batches[0]["inputs"], np.nan)}
    for loop in (believing, guarded):
        loop.batches = iter([bad])
        loop.run(1)
    finite = [bool(all_finite(loop.state.params)) for loop in (believing, guarded)]
    assert finite == [False, True]


def test_the_rows_of_the_guard() -> None:
    rows = guard.measure(repeats=2, steps={"mlp": 3, "gpt": 1})
    assert [(row.case, row.unit) for row in rows] == [("mlp", "us/step"), ("gpt", "ms/step")]


def test_an_evaluation_finds_what_the_bare_loop_finds() -> None:
    (loss, accuracy), metrics = evaluation.results(mlp_task(rows=8), length=5)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(accuracy)


def test_the_rows_of_an_evaluation() -> None:
    each, once = evaluation.measure(repeats=2, short=2, long=12)
    assert (each.unit, once.unit) == ("us/batch", "us")
    assert each.ratio is not None and once.ratio is None


def test_what_is_lost_to_a_save_is_the_difference_of_two_turns() -> None:
    seconds = [9.0, 9.0, 9.0, 5.0, 2.0, 7.0, 3.0]
    assert checkpoint.lost(seconds) == [3.0, 4.0]
    assert checkpoint.longest_stall([1.0, 2.0, 5.0, 6.0]) == 2.0


@pytest.mark.slow
def test_the_rows_of_checkpoints() -> None:
    rows = checkpoint.measure(repeats=1, sizes=(1,), turn_s=0.2)
    assert [row.case for row in rows] == [
        "1 MB, time lost to a save",
        "1 MB, longest stall of a step",
        "1 MB, restore",
        "1 MB, save() blocks",
        "1 MB, save that is waited for",
        "1 MB, fingerprints",
    ]
    assert all(row.bare is not None for row in rows)


@pytest.mark.slow
def test_the_rows_of_several_devices() -> None:
    rows = devices.measure(repeats=1, steps=10, large_steps=2)
    assert [row.case for row in rows] == ["tiny network, 8 devices", "transformer, 8 devices"]


@pytest.mark.slow
def test_the_rows_of_the_transformer() -> None:
    rows = gpt.measure(repeats=1, steps=50, rows=1, layers=1)
    logged = "log every 50"
    assert [row.case for row in rows] == [
        "noise",
        logged,
        "norms off",
        f"{logged}, same arithmetic",
    ]


def test_the_rows_of_many_arrays() -> None:
    rows = leaves.measure(repeats=1, leaves=[10])
    parts = (", noise", "", ", same arithmetic")
    assert [row.case for row in rows] == [f"10 arrays{part}" for part in parts]


@pytest.mark.slow
def test_both_scripts_reach_their_first_step(tmp_path: Path) -> None:
    for module in (start.BARE, start.TRAINER):
        found = start.run_script(module, str(tmp_path))
        assert 0 < found["imports"] < found["first step"]
    assert list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_child_process_measures_one_workload() -> None:
    rows, machine = conduct.run_child("evaluation", 1, {"short": 2, "long": 4})
    assert [row.workload for row in rows] == ["evaluation", "evaluation"]
    assert machine["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_a_child_process_that_fails_gives_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows, machine = conduct.run_child("evaluation", 1, {"no such option": 1})
    assert machine == {} and "failed" in rows[0].case and "no such option" in rows[0].note
    assert "TypeError" in capsys.readouterr().err

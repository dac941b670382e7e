"""How a step is written."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from xtrainer.checkpoint import (
    CheckpointItems,
    CheckpointManager,
    list_steps,
    read_meta,
    removal,
    restore_state,
    under_way,
)
from xtrainer.errors import CheckpointError, CheckpointNotFoundError

NAN = float("nan")


def names_in(folder):
    """Returns what a folder of checkpoints holds beside the file that names the run."""
    return {path.name for path in folder.iterdir()} - {"RUN.json"}


@pytest.fixture
def large(kit) -> CheckpointItems:
    return kit.items({"w": jax.random.normal(jax.random.key(0), (2**16,))})


@pytest.mark.parametrize("async_save", [True, False])
def test_a_save_followed_by_a_donated_step_holds_the_values_of_before(kit, tmp_path, async_save):
    mesh = kit.mesh(8)
    state = kit.state(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    double = jax.jit(
        lambda s: s.replace(
            params=jax.tree.map(lambda leaf: leaf * 2, s.params),
            opt_state=jax.tree.map(lambda leaf: leaf + 1, s.opt_state),
            step=s.step + 1,
        ),
        donate_argnums=0,
        out_shardings=shardings,
    )
    expected = {}
    with CheckpointManager(tmp_path, async_save=async_save) as manager:
        for step in (1, 2, 3):
            expected[step] = kit.numpy(state)
            manager.save(step, kit.items(state))
            state = double(state)
    for step, values in expected.items():
        restored = kit.numpy(restore_state(tmp_path / str(step), kit.template(mesh)))
        assert all(np.array_equal(a, b) for a, b in zip(restored, values, strict=True))


def test_meta_is_what_it_was_when_save_was_called(tmp_path, small):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, small)
        small.meta["progress"]["step"] = -1
    assert read_meta(tmp_path / "1")["progress"]["step"] == 7


def test_saving_works_inside_a_guarded_loop(kit, tmp_path):
    state = kit.state(kit.mesh(8))
    items = kit.items(state)
    with CheckpointManager(tmp_path) as manager, jax.transfer_guard("disallow"):
        manager.save(1, items)
        manager.wait()
    assert list_steps(tmp_path) == [1]


def test_a_save_under_way_is_no_step_yet(tmp_path, small):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, small)
        assert manager.all_steps() == []
        manager.wait()
        assert manager.all_steps() == [1]
        assert manager.latest_step() == 1


def test_an_empty_folder_has_no_latest_and_no_best_step(tmp_path):
    with CheckpointManager(tmp_path / "a" / "b", monitor_mode="min") as manager:
        assert manager.latest_step() is None
        assert manager.best_step() is None


def test_best_and_newest_steps_are_kept(tmp_path, small):
    with CheckpointManager(tmp_path, max_to_keep=1, monitor_mode="min") as manager:
        kept = []
        for step, metric in enumerate([3.0, 1.0, 2.0, NAN, 4.0], start=1):
            manager.save(step, small, metric)
            manager.wait()
            kept.append(manager.all_steps())
            assert list_steps(tmp_path) == manager.all_steps()
        assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
        assert manager.best_step() == 2
        assert manager.latest_step() == 5


def test_an_older_step_stays_until_the_newer_one_is_committed(tmp_path, small):
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, small)
        manager.save(2, small)
        manager.wait()
        manager.save(3, small)
        assert (tmp_path / "1").is_dir()
        manager.wait()
        assert not (tmp_path / "1").exists()
    assert names_in(tmp_path) == {"2", "3"}


def test_the_files_of_an_old_step_go_in_the_background(tmp_path, small, monkeypatch):
    may_go, remove = threading.Event(), removal.remove_tree

    def remove_later(path):
        may_go.wait(timeout=60)
        remove(path)

    monkeypatch.setattr(removal, "remove_tree", remove_later)
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        for step in (1, 2, 3):
            manager.save(step, small)
        manager.wait()
        assert names_in(tmp_path) == {"1.removed", "2", "3"}
        may_go.set()
    assert names_in(tmp_path) == {"2", "3"}


def test_retention_and_best_survive_a_restart(save_steps, tmp_path, small):
    save_steps({1: 0.1, 2: 0.5, 3: NAN}, monitor_mode="min", max_to_keep=2)
    with CheckpointManager(tmp_path, max_to_keep=2, monitor_mode="min") as manager:
        assert manager.best_step() == 1
        assert manager.metric_of(2) == 0.5
        assert np.isnan(manager.metric_of(3))
        manager.save(4, small, 0.3)
        manager.wait()
        assert manager.all_steps() == [1, 3, 4]
        manager.save(5, small, 0.9)
        manager.wait()
        assert manager.all_steps() == [1, 4, 5]


def test_metrics_of_the_other_mode_do_not_rank(save_steps, tmp_path):
    save_steps({1: 0.1, 2: 0.5}, monitor_mode="min")
    with CheckpointManager(tmp_path, monitor_mode="max") as manager:
        assert manager.best_step() is None


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("metric", [None, NAN, float("inf"), float("-inf")])
def test_best_is_none_rather_than_wrong(tmp_path, small, mode, metric):
    with CheckpointManager(tmp_path, monitor_mode=mode) as manager:
        manager.save(1, small, metric)
        manager.wait()
        assert manager.best_step() is None


def test_metrics_may_be_numpy_and_jax_scalars(tmp_path, small):
    with CheckpointManager(tmp_path, monitor_mode="min") as manager:
        manager.save(1, small, np.float32(0.5))
        manager.save(2, small, jnp.float32(0.25))
        manager.wait()
        assert (manager.metric_of(1), manager.metric_of(2)) == (0.5, 0.25)


def test_the_metric_of_no_step_is_an_error(save_steps, tmp_path):
    save_steps({1: 0.1})
    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(CheckpointNotFoundError, match=r"no step 2, expected one of \[1\]"):
            manager.metric_of(2)


@pytest.mark.parametrize("step", [3, 5])
def test_a_step_at_or_before_an_existing_one_is_refused_aloud(save_steps, tmp_path, small, step):
    save_steps({3: None, 5: None})
    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(CheckpointError, match=rf"steps \[.*5\].* after step {step}.*another"):
            manager.save(step, small)
        manager.save(6, small)
    assert list_steps(tmp_path) == [3, 5, 6]


def test_the_step_that_is_being_saved_is_refused_as_well(tmp_path, small):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, small)
        with pytest.raises(CheckpointError, match=r"steps \[1\]"):
            manager.save(1, small)


def test_something_else_under_the_name_of_a_step_is_set_aside(tmp_path, small, caplog):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "thesis.tex").write_text("do not delete")
    (tmp_path / "2").write_text("a file")
    (tmp_path / "3").symlink_to(tmp_path / "1")
    with CheckpointManager(tmp_path) as manager:
        for step in (1, 2, 3):
            manager.save(step, small)
    assert list_steps(tmp_path) == [1, 2, 3]
    assert (tmp_path / "corrupt-1" / "thesis.tex").read_text() == "do not delete"
    assert (tmp_path / "corrupt-2").read_text() == "a file"
    assert (tmp_path / "corrupt-3").is_symlink()
    assert caplog.text.count("it is no checkpoint") == 3


def test_a_negative_step_is_refused(tmp_path, small):
    with CheckpointManager(tmp_path) as manager, pytest.raises(CheckpointError, match="found -1"):
        manager.save(-1, small)


def test_meta_of_another_state_is_refused(tmp_path, small):
    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(CheckpointError, match="describes another state"):
            manager.save(1, CheckpointItems({"w": jnp.ones(3)}, small.meta))
    assert names_in(tmp_path) == set()


def test_a_failed_save_is_raised_once_and_its_space_freed(tmp_path, large):
    manager = CheckpointManager(tmp_path)
    manager.save(1, large)
    manager.wait()
    with zoo.full_disk():
        manager.save(2, large)
        with pytest.raises(CheckpointError, match="save of step 2 failed .*too large") as caught:
            manager.wait()
    assert caught.value.__cause__ is not None
    manager.wait()
    assert names_in(tmp_path) == {"1"}
    assert (manager.all_steps(), manager.latest_step()) == ([1], 1)
    manager.save(2, large)
    manager.close()
    assert list_steps(tmp_path) == [1, 2]


def test_a_failed_save_is_raised_by_the_next_save(tmp_path, large):
    with CheckpointManager(tmp_path) as manager:
        with zoo.full_disk():
            manager.save(1, large)
            with pytest.raises(CheckpointError, match="save of step 1 failed"):
                manager.save(2, large)
        manager.save(3, large)
    assert list_steps(tmp_path) == [3]


def test_a_failed_save_is_raised_by_close_and_only_once(tmp_path, large):
    manager = CheckpointManager(tmp_path)
    with zoo.full_disk():
        manager.save(1, large)
        with pytest.raises(CheckpointError, match="save of step 1 failed"):
            manager.close()
    manager.close()


def test_a_failed_save_without_async_is_raised_at_once(tmp_path, large):
    with CheckpointManager(tmp_path, async_save=False) as manager:
        with zoo.full_disk(), pytest.raises(CheckpointError, match="save of step 1 failed"):
            manager.save(1, large)
        manager.save(1, large)
        assert manager.all_steps() == [1]


def test_a_save_that_does_not_end_fails_after_a_while(tmp_path, small, monkeypatch):
    may_end, seal = threading.Event(), under_way.seal

    def seal_later(*args):
        may_end.wait(timeout=60)
        return seal(*args)

    monkeypatch.setattr(under_way, "seal", seal_later)
    manager = CheckpointManager(tmp_path, save_timeout_s=0.3)
    manager.save(1, small)
    with pytest.raises(CheckpointError, match="step 1 failed .*it has taken more than 0.3 s"):
        manager.wait()
    may_end.set()
    monkeypatch.undo()
    manager.save(2, small)
    manager.close()
    assert list_steps(tmp_path) == [2]


def test_a_failed_save_removes_no_older_step(tmp_path, large):
    with CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(1, large)
        manager.wait()
        with zoo.full_disk():
            manager.save(2, large)
            with pytest.raises(CheckpointError):
                manager.wait()
        assert list_steps(tmp_path) == [1]


def test_the_error_of_the_body_wins_over_that_of_the_save(tmp_path, large):
    with zoo.full_disk(), pytest.raises(KeyError, match="body") as caught:
        with CheckpointManager(tmp_path) as manager:
            manager.save(1, large)
            raise KeyError("body")
    assert "save of step 1 failed" in caught.value.__notes__[0]


def test_closing_finishes_the_save_and_may_be_repeated(tmp_path, small):
    manager = CheckpointManager(tmp_path)
    manager.save(1, small)
    manager.close()
    manager.close()
    assert list_steps(tmp_path) == [1]
    with pytest.raises(CheckpointError, match="found a closed manager"):
        manager.save(2, small)


def test_opening_removes_what_failed_saves_left_and_nothing_else(save_steps, tmp_path):
    save_steps({1: None, 2: None})
    (tmp_path / "2" / "COMMIT.json").unlink()
    (tmp_path / "3.saving" / "state").mkdir(parents=True)
    (tmp_path / "3.12.saving" / "state").mkdir(parents=True)
    (tmp_path / "4.removed" / "state").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.removed").mkdir()
    (tmp_path / "5").symlink_to(tmp_path / "notes")
    CheckpointManager(tmp_path).close()
    assert names_in(tmp_path) == {"1", "2", "5", "notes", "notes.removed"}


def test_a_damaged_old_step_does_not_stop_a_run_from_opening(save_steps, tmp_path, small, caplog):
    save_steps({1: 0.1, 2: 0.2}, monitor_mode="min")
    (tmp_path / "1" / "meta.json").write_text("{")
    with CheckpointManager(tmp_path, monitor_mode="min") as manager:
        assert manager.all_steps() == [2]
        assert manager.best_step() == 2
        manager.save(3, small, 0.3)
    assert names_in(tmp_path) == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_to_keep": 0}, "max_to_keep: found 0, expected a number >= 1"),
        ({"monitor_mode": "lowest"}, "monitor_mode: found 'lowest', expected 'min', 'max'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        CheckpointManager(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(CheckpointError, match="expected a folder that can be written"):
            CheckpointManager(path)


def test_a_relative_folder_is_resolved(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    with CheckpointManager("here/../there") as manager:
        manager.save(1, small)
    assert list_steps(tmp_path / "there") == [1]


def test_nothing_on_disk_is_a_pickle(run_folder):
    for path in run_folder.rglob("*"):
        assert path.suffix not in (".pkl", ".pickle")
        assert not (path.is_file() and path.read_bytes().startswith(b"\x80"))
    json.loads((run_folder / "checkpoints" / "7" / "meta.json").read_text())


ENDLESS_SAVES = """
    import sys, jax, jax.numpy as jnp, numpy as np
    from xtrainer.checkpoint import CheckpointItems, CheckpointManager, gather_meta
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
    manager = CheckpointManager(sys.argv[1], max_to_keep=2)
    for step in range(1, 10_000):
        state = {"w": jax.random.normal(jax.random.key(step), (2**18,)), "step": jnp.int32(step)}
        meta = gather_meta(state, progress={"step": step}, loaders={}, callbacks={}, config={},
                           batch_spec={}, mesh=mesh, metrics={})
        manager.save(step, CheckpointItems(state, meta))
        if step == 2:
            print("go", flush=True)
"""


def test_a_killed_writer_leaves_only_whole_steps(tmp_path, small):
    command = [sys.executable, "-c", textwrap.dedent(ENDLESS_SAVES), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    steps = list_steps(tmp_path)
    assert steps
    for step in steps:
        template = {"w": jnp.zeros(2**18), "step": jnp.int32(0)}
        state = restore_state(tmp_path / str(step), template)
        assert int(state["step"]) == step == read_meta(tmp_path / str(step))["progress"]["step"]
        assert np.array_equal(state["w"], jax.random.normal(jax.random.key(step), (2**18,)))
    with CheckpointManager(tmp_path) as manager:
        assert names_in(tmp_path) == {str(step) for step in steps}
        manager.save(steps[-1] + 1, small)

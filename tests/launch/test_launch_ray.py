"""Runs on Ray: refusals without it; with two CPU workers, results, reports, failures, restarts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import ray_jobs

from xtrainer.errors import ConfigError, MissingDependencyError, PeerError, require
from xtrainer.launch import ray as launch_ray

ROOT = Path(__file__).resolve().parents[2]
TWO_DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("", "tests", "tests/launch")),
}


# Without Ray.


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        launch_ray.run(ray_jobs.nothing, 0, {"CPU": -1}, kwargs={"a": 1}, max_failures=-2)
    names = [problem.split(":")[0] for problem in caught.value.problems]
    assert names == ["kwargs", "num_workers", "max_failures", "resources['CPU']"]


def test_a_machine_without_ray_gets_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "xtrainer\[ray\]"'):
        launch_ray.run(ray_jobs.nothing, 2)


def test_a_ray_without_the_trainer_is_told_to_be_updated(monkeypatch):
    import types

    old = types.ModuleType("ray")
    old.__version__ = "2.9.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", old)
    monkeypatch.setitem(sys.modules, "ray.train", types.ModuleType("ray.train"))
    with pytest.raises(MissingDependencyError, match=r"Found Ray 2\.9\.0.*pip install -U"):
        launch_ray.run(ray_jobs.nothing, 2)


def test_the_real_ray_is_imported_and_not_this_file():
    program = "import sys, xtrainer.launch.ray as r; print('ray' in sys.modules, r.__name__)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert out.stdout.split() == ["False", "xtrainer.launch.ray"]


def test_a_report_outside_a_run_says_how_to_start_one(monkeypatch):
    monkeypatch.delenv("XTRAINER_RAY_INBOX", raising=False)
    with pytest.raises(ConfigError, match=r"no worker of xtrainer\.launch\.ray\.run\(\)"):
        launch_ray.report({"loss": 1.0}, 1)


class Actor:
    """Stands for the inbox, with Ray's way to call it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.put = self

    def remote(self, step: int, row: dict[str, float]) -> None:
        self.rows.append((step, row))


@pytest.fixture
def inbox(monkeypatch) -> Actor:
    actor = Actor()
    monkeypatch.setenv("XTRAINER_RAY_INBOX", "name")
    monkeypatch.setattr(launch_ray, "_inbox", lambda name: actor)
    return actor


def test_a_report_goes_to_the_inbox_as_floats(inbox):
    launch_ray.report({"loss": jnp.ones(())}, np.int64(4))
    assert inbox.rows == [(4, {"loss": 1.0})]
    assert type(inbox.rows[0][0]) is int and type(inbox.rows[0][1]["loss"]) is float


def test_only_process_0_reports(inbox, monkeypatch):
    monkeypatch.setattr(launch_ray, "runtime_process", lambda: 1)
    launch_ray.report({"loss": 1.0}, 1)
    assert inbox.rows == []


class Failed(Exception):
    def __init__(self, failures):
        super().__init__("Training failed")
        self.worker_failures = failures


def test_the_worker_that_failed_first_is_named_with_its_error():
    failures = {0: PeerError("process 1 has failed"), 1: ValueError("broken data\nin batch 3")}
    message, cause = launch_ray._told(Failed(failures), 2)
    assert message.startswith("Worker 1 of 2 has failed (as have [0]): ValueError: broken data\n")
    assert cause is failures[1]


def test_a_worker_that_ray_has_ended_is_named_where_there_is_no_other():
    ended = type("ActorDiedError", (Exception,), {"__module__": "ray.exceptions"})
    message, _ = launch_ray._told(Failed({0: ended("ended"), 1: OSError("disk")}), 2)
    assert message.startswith("Worker 1 of 2 has failed (as have [0]): OSError: disk")
    message, _ = launch_ray._told(Failed({1: ended("killed")}), 2)
    assert message.startswith("Worker 1 of 2 has failed: ray.exceptions.ActorDiedError: killed")


def test_a_failure_without_workers_is_rays_own():
    error = RuntimeError("no controller")
    assert launch_ray._told(error, 2) == ("Ray could not run the workers: no controller", error)


def test_the_last_metrics_are_those_of_the_highest_step():
    result = launch_ray.RayResult(value=None, history={5: {"a": 1.0}, 2: {"a": 9.0}})
    assert result.metrics == {"a": 1.0}
    assert launch_ray.RayResult(value=None).metrics == {}


# With Ray: two workers on this machine, asked for with -m slow.

with_ray = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="class")
def ray():
    """Connects one Ray for all tests of a class; an error with the pip line without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray = require("ray", "ray")
        ray.init(address="local", num_cpus=2, include_dashboard=False)
        yield ray
        ray.shutdown()


@pytest.mark.usefixtures("ray")
class TestWithRay:
    pytestmark = with_ray

    def test_values_of_process_0_come_back_as_numpy_and_reports_as_they_are_made(self, tmp_path):
        heard = []
        result = launch_ray.run(
            ray_jobs.values,
            2,
            kwargs={"scale": 2.0},
            env_vars={**TWO_DEVICES, "JOB_NAME": "job"},
            storage_path=tmp_path,
            name="mine",
            on_report=lambda row, step: heard.append((step, row)),
        )
        assert result.num_processes == 2
        assert Path(result.path) == tmp_path / "mine"
        value = result.value
        assert all(type(value[key]) is np.ndarray for key in ("spread", "replicated", "own", "key"))
        np.testing.assert_array_equal(value["spread"], np.float32([2, 2, 4, 4]))
        assert value["replicated"] == 12.0 and value["replicated"].shape == ()
        assert value["own"].dtype == jnp.bfloat16 and not value["own"].any()
        np.testing.assert_array_equal(value["key"], np.uint32([0, 3]))
        assert (value["name"], value["ours"]) == ("job", 10)
        assert result.history == {
            1: {"total": 12.0, "process": 0.0},
            2: {"total": 12.0, "process": 0.0, "accuracy": 0.5},
        }
        assert heard[-1] == (2, {"accuracy": 0.5})

    def test_a_shared_array_that_one_process_keeps_is_refused_and_not_waited_for(self, tmp_path):
        with pytest.raises(PeerError, match="differ at the value itself"):
            launch_ray.run(
                ray_jobs.only_main_returns_spread, 2, env_vars=TWO_DEVICES, storage_path=tmp_path
            )

    def test_an_error_beside_a_collective_ends_all_with_the_workers_traceback(self, tmp_path):
        with pytest.raises(PeerError, match="Worker 1 of 2 .*ValueError: the data") as caught:
            launch_ray.run(
                ray_jobs.fail_beside_a_collective, 2, env_vars=TWO_DEVICES, storage_path=tmp_path
            )
        assert type(caught.value.__cause__) is ValueError
        (note,) = caught.value.__cause__.__notes__
        assert note.startswith("On worker 1:\nTraceback") and "in fail_beside_a_collective" in note

    def test_a_killed_worker_is_an_error_where_no_failure_is_allowed(self, tmp_path):
        with pytest.raises(PeerError, match="Worker 1 of 2 has failed"):
            self.die_once(tmp_path, max_failures=0)

    def test_a_killed_worker_is_started_again_where_failures_are_allowed(self, tmp_path):
        result = self.die_once(tmp_path, max_failures=1)
        assert result.value == 2
        assert result.history == {1: {"loss": 4.0}}

    def die_once(self, folder: Path, max_failures: int) -> launch_ray.RayResult:
        return launch_ray.run(
            ray_jobs.die_once,
            2,
            kwargs={"marker": str(folder / "starts")},
            env_vars=TWO_DEVICES,
            storage_path=folder,
            max_failures=max_failures,
        )

    def test_a_trainer_gives_the_numbers_of_one_process(self, tmp_path):
        result = launch_ray.run(
            ray_jobs.train,
            2,
            kwargs={"on_ray": True, "fsdp": 4},
            env_vars=TWO_DEVICES,
            storage_path=tmp_path,
        )
        expected = ray_jobs.train(on_ray=False)
        for layer, leaves in expected.items():
            for name, leaf in leaves.items():
                np.testing.assert_allclose(
                    result.value[layer][name], np.asarray(leaf), rtol=1e-4, atol=1e-6
                )
        assert set(result.history) == {2, 4, 6, 8}
        assert {"train/loss_mean", "train_epoch/loss", "val/loss"} <= set(result.metrics)

    def test_workers_that_ray_has_not_joined_are_refused(self, monkeypatch, tmp_path):
        ray, trainer, config = launch_ray._import_ray()
        found = (ray, trainer, lambda **ignored: config())
        monkeypatch.setattr(launch_ray, "_import_ray", lambda: found)
        with pytest.raises(PeerError, match=r"Found 1 process\(es\) of JAX, expected 2"):
            launch_ray.run(ray_jobs.nothing, 2, env_vars=TWO_DEVICES, storage_path=tmp_path)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"colour": "red"}, "unexpected keyword argument 'colour'"),
            ({"topology": "4x4", "accelerator_type": "TPU-V6E"}, "multiple of 4"),
            ({"topology": "4x4"}, "accelerator_type"),
        ],
    )
    def test_options_that_ray_refuses_are_told(self, options, message):
        with pytest.raises(ConfigError, match=message):
            launch_ray.run(ray_jobs.nothing, 3, scaling_options=options)

    def test_waiting_for_resources_ends(self, monkeypatch, tmp_path):
        monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "4")
        with pytest.raises(PeerError, match=r"Ray could not run the workers: [^$]*timed out"):
            launch_ray.run(ray_jobs.nothing, 3, start_attempts=2, storage_path=tmp_path)

    def test_a_ray_that_was_connected_stays_so_with_its_signal_handlers(self, ray, tmp_path):
        before = signal.getsignal(signal.SIGINT)
        launch_ray.run(ray_jobs.nothing, 1, env_vars=TWO_DEVICES, storage_path=tmp_path)
        assert ray.is_initialized()
        assert signal.getsignal(signal.SIGINT) is before


class TestWithARayOfItsOwn:
    pytestmark = with_ray

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch):
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def test_it_is_ended_after_the_run(self, tmp_path):
        result = launch_ray.run(ray_jobs.nothing, 1, env_vars=TWO_DEVICES, storage_path=tmp_path)
        assert (result.value, result.history, result.num_processes) == (None, {}, 1)
        assert not require("ray", "ray").is_initialized()

    def test_more_than_the_machine_has_is_refused_and_it_is_ended(self, tmp_path):
        with pytest.raises(ConfigError, match="2 workers with 9999 CPU each need 19998, found"):
            launch_ray.run(ray_jobs.nothing, 2, {"CPU": 9999}, storage_path=tmp_path)
        assert not require("ray", "ray").is_initialized()

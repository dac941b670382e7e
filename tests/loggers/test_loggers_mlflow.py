"""Real MLflow stores, in a folder and on a server: what is in them after a run that went on?"""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import xtrainer as xt
from xtrainer.errors import ConfigError, MissingDependencyError
from xtrainer.loggers import LoggerConfig, MLflowLoggerConfig

ODD = ["", "/", "//a", "a//b", "a/", "..", ".", "../x", "a/./b", "a/../b", "__proto__", "x" * 300]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store in a folder, which MLflow allows on request only."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path / 'mlruns'}"


def make(store: str, folder: Path = Path("run_a"), **fields: Any) -> Any:
    return MLflowLoggerConfig(tracking_uri=store, **fields).create(folder)


def client_of(store: str) -> Any:
    return importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=store)


def only_run(store: str, experiment: str = "xtrainer") -> Any:
    client = client_of(store)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


def history(store: str, key: str) -> list[tuple[int, float]]:
    run_id = only_run(store).info.run_id
    return [(m.step, m.value) for m in client_of(store).get_metric_history(run_id, key)]


def test_rows_texts_and_the_config_are_in_the_run(store: str, tmp_path: Path) -> None:
    logger = make(store, experiment="e", tags={"team": "a"})
    logger.log_config({"seed": 1234567, "nested": {"list": [1, None]}})
    logger.log_metrics({"loss": 0.5, "bad": math.nan, "Größe (m)": 2.0}, 10, "train", 1)
    logger.log_text("table/of all", "hello", 3)
    logger.finalize("completed")
    run = only_run(store, "e")
    assert (run.info.run_name, run.info.status) == ("run_a", "FINISHED")
    assert run.data.tags["team"] == "a"
    metrics = run.data.metrics
    assert (metrics["train/loss"], metrics["train/epoch"]) == (0.5, 1.0)
    assert math.isnan(metrics["train/bad"]) and metrics["train/Gr__e _m_"] == 2.0
    files = {p.name: p for p in (tmp_path / "mlruns").rglob("*") if p.is_file()}
    assert '"seed": 1234567' in files["config.json"].read_text(encoding="utf-8")
    assert files["table_of_all_3.txt"].read_text(encoding="utf-8") == "hello"


@pytest.mark.parametrize(
    ("status", "said"), [("completed", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")]
)
def test_the_status_is_that_of_mlflow(store: str, status: str, said: str) -> None:
    logger = make(store)
    logger.open()
    assert only_run(store).info.status == "RUNNING"
    logger.finalize(status)
    logger.finalize("failed")
    assert only_run(store).info.status == said


def test_a_process_that_goes_on_sends_nothing_twice(store: str) -> None:
    first = make(store)
    for step in (1, 2, 3, 4):
        first.log_metrics({"loss": 1.0 / step, "odd": math.nan}, step, "train", 1)
    again = make(store)
    again.load_state_dict(first.state_dict(), 2)
    for step in (3, 4, 5):
        again.log_metrics({"loss": 1.0 / step, "odd": math.nan}, step, "train", 1)
    again.finalize("completed")
    assert history(store, "train/loss") == [(s, 1.0 / s) for s in (1, 2, 3, 4, 5)]
    assert [step for step, _ in history(store, "train/odd")] == [1, 2, 3, 4, 5]


def test_another_course_stands_beside_the_first(store: str) -> None:
    first = make(store)
    for step in (1, 2):
        first.log_metrics({"loss": 1.0}, step, "train", 1)
    again = make(store)
    again.load_state_dict(first.state_dict(), 1)
    again.log_metrics({"loss": 7.0}, 2, "train", 1)
    assert history(store, "train/loss") == [(1, 1.0), (2, 1.0), (2, 7.0)]


def test_a_run_that_was_resumed_is_one_run_with_each_row_once(store: str, tmp_path: Path) -> None:
    def trainer(*callbacks: Any) -> Any:
        tools = [MLflowLoggerConfig(tracking_uri=store)]
        logger = LoggerConfig(log_path=str(tmp_path / "run"), log_tools=tools, log_every_n_steps=1)
        saving = xt.ModelCheckpointConfig(every_n_steps=2)
        made = probes.traced(logger=logger, callbacks=[saving])
        made.callbacks += [make(made) for make in callbacks]
        return made

    class Died(BaseException):
        pass

    def die(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise Died

    with pytest.raises(Died):
        trainer(probes.acting("on_training_step", die)).train_model(
            probes.numbered(8), num_train_steps=8
        )
    assert max(step for step, _ in history(store, "train/loss_mean")) >= 4
    trainer().train_model(probes.numbered(8), num_train_steps=8)
    assert [step for step, _ in history(store, "train/loss_mean")] == list(range(1, 9))
    assert only_run(store).info.status == "FINISHED"


def test_a_run_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"found log_path=None and name=None. Set one of them"):
        MLflowLoggerConfig().create(None)


def test_a_missing_package_gives_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "xtrainer\[mlflow\]"'):
        MLflowLoggerConfig().create(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=300) | st.sampled_from(ODD), unique=True, max_size=6))
def test_any_names_become_names_that_mlflow_takes_and_that_differ(keys: list[str]) -> None:
    check = importlib.import_module("mlflow.utils.validation")._validate_metric_name
    logger = make("file:nowhere")
    names = [logger._name(f"train/{key}") for key in keys]
    assert len(set(names)) == len(keys)
    for name in names:
        check(name)


@pytest.mark.parametrize("keys", [("a?", "a!"), ("..", "__"), ("x" * 300, "x" * 301)])
def test_names_that_mlflow_cannot_tell_apart_are_two_metrics(
    store: str, keys: tuple[str, str]
) -> None:
    logger = make(store)
    logger.log_metrics({keys[0]: 1.0, keys[1]: 2.0}, 1, "val", 1)
    logger.finalize("completed")
    found = {
        key: value for key, value in only_run(store).data.metrics.items() if "epoch" not in key
    }
    assert sorted(found.values()) == [1.0, 2.0]


# All that can be sent, to a folder and to a server.


def send(logger: Any, steps: tuple[int, ...], status: str, lr: float = 0.5) -> None:
    """Sends something of everything."""
    logger.log_config({"seed": 7, "optimizer": {"lr": lr, "betas": [1, 2]}, "note": "x" * 9000})
    logger.log_model("a table of parameters")
    for step in steps:
        logger.log_metrics({"loss": 1.0 / step}, step, "train", 1)
        logger.log_image("samples/a", np.full((2, 3, 3), step, np.uint8), step)
        logger.log_histogram("w", np.ones(1), np.arange(2.0), step)
        logger.log_table("confusion", ["a", "b"], [["x", step]], step)
    logger.log_best({"loss": 1.0 / steps[-1]}, steps[-1])
    logger.finalize(status)


def check_one_run_of_two_processes(store: str) -> None:
    """Fails unless a run that failed and went on is one run, with each value once."""
    first, begun_ms = make(store), time.time() * 1000
    send(first, (1, 2, 3), "failed")
    assert only_run(store).info.status == "FAILED"
    again = make(store)
    again.load_state_dict(first.state_dict(), 2)
    send(again, (3, 4), "completed", lr=0.25)
    run, client = only_run(store), client_of(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run_a")
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in points] == [(s, 1.0 / s) for s in (1, 2, 3, 4)]
    assert all(begun_ms - 1 <= m.timestamp <= time.time() * 1000 + 1 for m in points)
    assert history(store, "best/loss") == [(3, 1.0 / 3), (4, 0.25)]
    params = run.data.params
    assert params.pop("note") == "x" * 500
    assert params == {"seed": "7", "optimizer.lr": "0.5", "optimizer.betas": "[1, 2]"}
    with_files = {
        path: sorted(entry.path for entry in client.list_artifacts(run.info.run_id, path))
        for path in ("", "images/samples_a", "tables/confusion")
    }
    steps = [f"{step:08d}" for step in (1, 2, 3, 4)]
    assert {"config.json", "parameters.txt"} <= set(with_files[""])
    assert with_files["images/samples_a"] == [f"images/samples_a/{s}.png" for s in steps]
    assert with_files["tables/confusion"] == [f"tables/confusion/{s}.csv" for s in steps]
    read = lambda path: client.download_artifacts(run.info.run_id, path)  # noqa: E731
    pixels = np.asarray(Image.open(read(f"images/samples_a/{steps[3]}.png")))
    assert pixels.shape == (2, 3, 3) and (pixels == 4).all()
    assert Path(read(f"tables/confusion/{steps[0]}.csv")).read_text() == "a,b\nx,1\n"
    assert '"lr": 0.25' in Path(read("config.json")).read_text()  # the newest; parameters stay


def test_a_folder_has_one_run_of_two_processes(store: str) -> None:
    check_one_run_of_two_processes(store)


def test_more_settings_than_one_call_takes_are_all_sent(store: str) -> None:
    logger = make(store)
    logger.log_config({"many": {f"value {i}": i for i in range(250)}})
    assert len(only_run(store).data.params) == 250


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracking server on this machine."""
    folder, wait_s = tmp_path_factory.mktemp("server"), 300.0
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "0"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/db.sqlite", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, start_new_session=True,
    )  # fmt: skip
    stop = lambda: os.killpg(process.pid, signal.SIGKILL)  # noqa: E731
    timer = threading.Timer(wait_s, stop)
    timer.start()
    said = ""
    try:
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", said)):
            line = process.stdout.readline()  # type: ignore[union-attr]
            assert line, said
            said += line
        timer.cancel()
        threading.Thread(target=process.stdout.read, daemon=True).start()  # type: ignore[union-attr]
        yield found.group(1)
    finally:
        timer.cancel()
        stop()
        process.wait()


@pytest.mark.slow
def test_a_server_has_one_run_of_two_processes(server: str) -> None:
    check_one_run_of_two_processes(server)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "said"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_server_is_told_how_a_run_ended(server: str, status: str, said: str) -> None:
    logger = make(server, experiment=status)
    logger.open()
    assert only_run(server, status).info.status == "RUNNING"
    logger.finalize(status)
    assert only_run(server, status).info.status == said

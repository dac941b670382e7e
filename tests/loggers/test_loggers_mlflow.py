"""A real MLflow store in a folder: what is in it after a run, and after one that went on?"""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import probes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

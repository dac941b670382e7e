"""Are the rows of a run where they should be, in every logger, and after a kill?"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zoo

import xtrainer as xt

ENDLESS_RUN = """
import sys, time
import jax, zoo
import xtrainer as xt

class Slow(zoo.Classifier):
    def on_training_step(self, step_metrics, epoch_idx, step_idx):
        time.sleep(0.02)

trainer = zoo.make_trainer(Slow, mesh=zoo.devices(1), logger=zoo.file_logger(sys.argv[1]))
trainer.train_model(zoo.loader(64), zoo.loader(16), num_train_steps=1_000_000)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Gives a run of six steps, a row every two, with all loggers."""
    folder = tmp_path_factory.mktemp("loggers") / "run"
    tools = (
        xt.TensorBoardLoggerConfig(flush_every_s=0),
        xt.WandBLoggerConfig(project="test", mode="offline"),
    )
    trainer = zoo.make_trainer(
        mesh=zoo.devices(1),
        logger=zoo.file_logger(folder, 2, *tools),
        callbacks=[xt.LearningRateMonitorConfig()],
    )
    results = trainer.train_model(zoo.loader(48), zoo.loader(16), zoo.loader(16), num_epochs=2)
    return SimpleNamespace(folder=folder, results=results, trainer=trainer)


def rows(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Returns the rows of ``metrics.jsonl`` by set and step."""
    return {(row["set"], row["step"]): row["metrics"] for row in xt.read_metrics(folder)}


def test_the_rows_are_those_of_the_run(run: SimpleNamespace) -> None:
    found = rows(run.folder)
    assert list(found) == [
        ("train", 2),
        ("train_epoch", 3),
        ("val", 3),
        ("train", 4),
        ("train", 6),
        ("train_epoch", 6),
        ("val", 6),
        ("test", 6),
    ]
    assert found["val", 3].items() >= run.results["val_epoch_1"].items()
    assert set(found["train", 4]) == {
        "loss_mean", "accuracy_mean", "grad_norm_mean", "param_norm_mean", "learning_rate"
    }  # fmt: skip


def test_the_csv_files_hold_the_same_numbers(run: SimpleNamespace) -> None:
    found = rows(run.folder)
    for mode in ("train", "train_epoch", "val", "test"):
        with open(run.folder / f"metrics_{mode}.csv", newline="") as file:
            table = list(csv.DictReader(file))
        expected = {step: row for (kind, step), row in found.items() if kind == mode}
        assert [int(line["step"]) for line in table] == list(expected)
        for line in table:
            row = {k: float(v) for k, v in line.items() if k not in ("step", "epoch")}
            assert row == expected[int(line["step"])]


def test_tensorboard_holds_the_same_numbers(run: SimpleNamespace) -> None:
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    found: dict[tuple[str, int], float] = {}
    (path,) = (run.folder / "tensorboard").iterdir()
    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
        data = data[16 + size :]
    expected = {
        (f"{mode}/{key}", step): value
        for (mode, step), row in rows(run.folder).items()
        for key, value in row.items()
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)


def wandb_records(path: Path) -> Iterator[Any]:
    """Yields the records of a W&B file: blocks of 32 KiB with pieces of records, as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # a piece's head does not fit: the block was filled up
            position += 32768 - position % 32768
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if kind == 0 or position + 7 + size > len(data):
            return
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last piece
            yield Record.FromString(record)
            record = b""


def test_wandb_holds_the_same_numbers(run: SimpleNamespace) -> None:
    (path,) = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    # W&B's own process may still be writing when its run is finished.
    while not any(record.HasField("exit") for record in wandb_records(path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for record in wandb_records(path):
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in items.items():
            mode, _, name = key.partition("/")
            if name:
                found.setdefault((mode, items["step"]), {})[name] = value
    texts = found.pop(("text", run.trainer.global_step))
    assert list(texts) == ["training_summary"]
    assert list(found.pop(("text", 0))) == ["parameters"]
    assert found == rows(run.folder)


def test_the_config_of_the_run_is_kept(run: SimpleNamespace) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    assert xt.Config.from_dict(xt.TrainerConfig, config["trainer"]) == run.trainer.trainer_config
    assert xt.Config.from_dict(xt.OptimizerConfig, config["optimizer"]) == (
        run.trainer.optimizer_config
    )


def test_the_last_steps_are_logged_even_where_no_row_is_due(tmp_path: Path) -> None:
    trainer = zoo.make_trainer(mesh=zoo.devices(1), logger=zoo.file_logger(tmp_path, 4))
    trainer.train_model(zoo.loader(48), num_train_steps=6)
    assert list(zoo.rows_of(tmp_path, "train")) == [4, 6]


@pytest.mark.processes
def test_a_killed_run_keeps_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_RUN, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not _has_rows(folder, 12):
            assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]
    found = zoo.rows_of(folder, "train")
    steps = list(found)
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 12
    assert all("loss_mean" in row for row in found.values())
    with open(folder / "metrics_train.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(line["step"]) for line in table[:12]] == steps[:12]
    assert float(table[7]["loss_mean"]) == found[8]["loss_mean"]
    assert set(zoo.rows_of(folder, "val")) >= {4, 8}


def _has_rows(folder: Path, count: int) -> bool:
    path = folder / "metrics_train.csv"
    return path.exists() and len(path.read_text().splitlines()) > count

"""What does TensorBoard itself show? Read back through its HTTP API on loopback."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
from PIL import Image

import xtrainer as xt
from xtrainer.loggers.tensorboard import TensorBoardLogger

WAIT_S = 60.0
STEPS = 8
SAVED, DIED = 4, 6
RUN, OTHER = "trained/tensorboard", "killed"
VAL = [probes.one(100), probes.one(101)]


class Died(BaseException):
    """The end of a process."""


def die(trainer: Any, *_: Any) -> None:
    if trainer.global_step == DIED:
        raise Died


def show(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
    """Logs an image whose pixels are the step."""
    image = np.full((2, 3, 3), step, np.uint8)
    image[0, 0] = (255, 0, 7)
    trainer.logger.log_image("samples/first", image, step)


def train(stage: probes.Repeatable, folder: Path, *more: Any) -> None:
    tools = [xt.FileLoggerConfig(), xt.TensorBoardLoggerConfig(flush_every_s=0)]
    logger = xt.LoggerConfig(log_every_n_steps=1, log_path=str(folder), log_tools=tools)
    configs = [
        xt.HistogramConfig(every_n_steps=3, bins=8, include=("Dense_0/*",)),
        xt.ConfusionMatrixConfig(class_names=("a", "b", "c")),
        xt.ModelCheckpointConfig(every_n_steps=SAVED, monitor="loss"),
    ]
    showing = probes.acting("on_validation_epoch_end", show)
    trainer = stage.begin(*configs, showing, *more, folder=folder, check_val_every_n_steps=2)
    own = {"logger": logger, "callbacks": configs}
    trainer.trainer_config = dataclasses.replace(trainer.trainer_config, **own)
    trainer.init_logger(logger)
    trainer.train_model(probes.numbered(STEPS), VAL, num_train_steps=STEPS)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has died after a checkpoint and was resumed, and a tool that was killed."""
    folder, stage = tmp_path_factory.mktemp("logs"), probes.Repeatable(probes.traced())
    with pytest.raises(Died):
        train(stage, folder / "trained", probes.acting("on_training_step", die))
    shutil.rmtree(folder / f"trained/checkpoints/{DIED}")  # a kill would not have let it be saved
    train(stage, folder / "trained")
    killed = TensorBoardLogger(folder / OTHER, flush_every_s=0)
    again = TensorBoardLogger(folder / OTHER)
    for tool, steps, value in ((killed, (1, 2, 3, 4), 1.0), (again, (3, 4, 5), 2.0)):
        if tool is again:
            tool.load_state_dict({}, 2)
        tool.log_config({"optimizer": {"lr": 0.5, "name": "other"}, "fast": True})
        for step in steps:
            tool.log_metrics({"loss": value}, step, "train", 1)
            tool.log_image("samples", np.zeros((1, 1, 1), np.uint8), step)
            tool.log_histogram("w", np.ones(1), np.array([0.0, value]), step)
    again.finalize("stopped")
    return folder


class App:
    """TensorBoard in a process of its own."""

    def __init__(self, folder: Path, loader: str) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
        command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", loader]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said, deadline = "", time.monotonic() + WAIT_S
        timer = threading.Timer(WAIT_S, self.process.kill)
        timer.start()
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", said)):
            line = self.process.stdout.readline()  # type: ignore[union-attr]
            assert line and time.monotonic() < deadline, said
            said += line
        timer.cancel()
        self.url = found.group()

    def get(self, plugin: str, route: str, post: Any = None, **query: str) -> Any:
        """Returns the JSON of a route of a plug-in."""
        return json.loads(self.read(f"{plugin}/{route}?{urllib.parse.urlencode(query)}", post))

    def read(self, path: str, post: Any = None) -> bytes:
        """Returns what stands under a path."""
        data = None if post is None else json.dumps(post).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}data/plugin/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return response.read()

    def series(self, tag: str, run: str = RUN) -> list[tuple[int, float]]:
        """Returns steps and values of a scalar."""
        points = self.get("scalars", "scalars", run=run, tag=tag)
        return [(step, value) for _, step, value in points]


@pytest.fixture(scope="module", params=["auto", "false"])
def app(logs: Path, request: pytest.FixtureRequest) -> Iterator[App]:
    """TensorBoard with the loader that it takes by itself, and with its older one."""
    made = App(logs, request.param)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:  # it answers before it has read all
            tags = made.get("scalars", "tags")
            if "best/loss" in tags.get(RUN, {}) and OTHER in tags:
                if made.series("train/loss", OTHER)[-1][0] == 5:
                    break
            assert time.monotonic() < deadline, tags
            time.sleep(0.05)
        yield made
    finally:
        made.process.terminate()
        made.process.communicate(timeout=WAIT_S)


def test_scalars_are_those_of_the_rows_once_each(app: App, logs: Path) -> None:
    rows = xt.read_metrics(logs / "trained")
    wanted: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in {**row["metrics"], "": row["epoch"]}.items():
            tag = f"{row['set']}/{key}" if key else f"epoch/{row['set']}"
            wanted.setdefault(tag, []).append((row["step"], float(np.float32(value))))
    tags = set(app.get("scalars", "tags")[RUN])
    assert tags == {*wanted, "best/loss"}
    for tag, points in wanted.items():
        assert app.series(tag) == points
    assert [step for step, _ in app.series("train/loss_mean")] == list(range(1, STEPS + 1))


def test_tags_are_grouped_by_their_set(app: App) -> None:
    groups = {tag.split("/")[0] for tag in app.get("scalars", "tags")[RUN]}
    assert groups == {"train", "train_epoch", "val", "epoch", "best"}


def test_after_a_kill_only_the_newer_values_are_shown(app: App) -> None:
    assert app.series("train/loss", OTHER) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    images = app.get("images", "images", run=OTHER, tag="samples", sample="0")
    assert [image["step"] for image in images] == [1, 2, 3, 4, 5]
    histograms = app.get("histograms", "histograms", run=OTHER, tag="w")
    assert [(step, bins[-1][1]) for _, step, bins in histograms] == [
        (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0),
    ]  # fmt: skip


def test_hparams_show_each_run_once_with_settings_and_last_values(app: App, logs: Path) -> None:
    experiment = app.get("hparams", "experiment", post={"experimentName": ""})
    settings = {info["name"]: info for info in experiment["hparamInfos"]}
    assert settings["trainer.seed"]["type"] == "DATA_TYPE_FLOAT64"
    assert settings["fast"]["type"] == "DATA_TYPE_BOOL"
    assert not [name for name in settings if name.startswith("trainer.logger")]
    tags = [info["name"] for info in experiment["metricInfos"]]
    assert {"tag": "best/loss", "group": ""} in tags
    asked = {"experimentName": "", "startIndex": 0, "sliceSize": 100}
    asked["colParams"] = [{"metric": tag} for tag in tags]
    asked["allowedStatuses"] = [f"STATUS_{s}" for s in ("UNKNOWN", "SUCCESS", "RUNNING", "FAILURE")]
    groups = app.get("hparams", "session_groups", post=asked)["sessionGroups"]
    by_name = {group["name"]: group for group in groups}
    assert len(groups) == 2 and set(by_name) == {RUN, OTHER}
    own = by_name[RUN]
    assert own["hparams"]["optimizer.scheduler.lr"] == 0.01
    assert own["hparams"]["trainer.callbacks.0"] == "HistogramConfig"
    assert by_name[OTHER]["hparams"] == {
        "optimizer.lr": 0.5,
        "optimizer.name": "other",
        "fast": True,
    }
    shown = {metric["name"]["tag"]: metric["value"] for metric in own["metricValues"]}
    for tag in ("best/loss", "val/loss", "train/loss_mean"):
        assert shown[tag] == app.series(tag)[-1][1]
    losses = [row["metrics"]["loss"] for row in xt.read_metrics(logs / "trained")
              if row["set"] == "val"]  # fmt: skip
    assert shown["best/loss"] == float(np.float32(min(losses)))
    (session,) = own["sessions"]
    assert session["status"] == "STATUS_SUCCESS"
    assert by_name[OTHER]["sessions"][0]["status"] != "STATUS_SUCCESS"  # it may go on


def test_the_text_tab_has_the_config_the_parameters_and_the_summary(app: App) -> None:
    def texts(tag: str) -> list[tuple[int, str]]:
        found = app.get("text", "text", run=RUN, tag=f"{tag}/text_summary")
        return [(entry["step"], entry["text"]) for entry in found]

    steps = [0, SAVED + 1]  # of the first process and of the one that went on
    assert [step for step, _ in texts("config")] == steps
    assert '"seed": 0' in texts("config")[0][1]
    assert [step for step, _ in texts("parameters")] == steps
    table = texts("parameters")[0][1]
    assert "<code>" in table and "Dense_0/kernel" in table and "4×4" in table
    assert [step for step, _ in texts("training_summary")][-1] == STEPS
    last = texts("confusion_matrix/val")[-1]
    assert last[0] == STEPS and "<th>target</th>" in last[1] and "<td>a</td>" in last[1]


def test_images_come_back_pixel_by_pixel(app: App) -> None:
    found = app.get("images", "images", run=RUN, tag="samples/first", sample="0")
    assert [image["step"] for image in found] == [2, 4, 6, 8]
    for image in found:
        pixels = Image.open(io.BytesIO(app.read(f"images/individualImage?{image['query']}")))
        array = np.asarray(pixels)
        assert array.shape == (2, 3, 3)
        assert array[0, 0].tolist() == [255, 0, 7] and (array[1] == image["step"]).all()
    (matrices,) = [
        app.get("images", "images", run=RUN, tag=tag, sample="0")
        for tag in app.get("images", "tags")[RUN]
        if tag == "confusion_matrix/val"
    ]
    assert [image["step"] for image in matrices] == [2, 4, 6, 8]


def test_histograms_have_the_counts_of_every_array(app: App) -> None:
    tags = app.get("histograms", "tags")[RUN]
    assert set(tags) == {"parameters/Dense_0/kernel", "parameters/Dense_0/bias"}
    found = app.get("histograms", "histograms", run=RUN, tag="parameters/Dense_0/kernel")
    assert [step for _, step, _ in found] == [3, 6]
    for _, _, bins in found:
        assert sum(count for _, _, count in bins) == 16
        filled = [(left, right) for left, right, count in bins if count]
        assert all(left < right for left, right in filled)

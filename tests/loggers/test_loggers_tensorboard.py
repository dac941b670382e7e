"""Event files are read back record by record."""

import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from xtrainer.config import check_configs
from xtrainer.errors import ConfigError
from xtrainer.loggers import NullLogger, TensorBoardLoggerConfig

ROOT = Path(__file__).resolve().parents[2]


def read_events(folder):
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
            body = data[12 : 12 + length]
            assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked_crc32c(body),)
            events.append(Event.FromString(body))
            data = data[16 + length :]
    return events


def scalars(folder):
    return [
        (value.tag, event.step, value.simple_value)
        for event in read_events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


@pytest.fixture
def logger(tmp_path):
    tool = TensorBoardLoggerConfig().create(tmp_path)
    yield tool
    tool.finalize("completed")


def test_scalars_bear_set_and_metric_and_step(logger, tmp_path):
    logger.log_metrics({"loss_mean": 0.5, "accuracy": 0.25}, 10, "train", 2)
    logger.log_metrics({"loss_mean": 1.5}, 10, "val", 2)
    logger.finalize("completed")
    assert scalars(tmp_path / "tensorboard") == [
        ("train/loss_mean", 10, 0.5),
        ("train/accuracy", 10, 0.25),
        ("epoch/train", 10, 2.0),
        ("val/loss_mean", 10, 1.5),
        ("epoch/val", 10, 2.0),
    ]


def test_flush_puts_every_row_on_disk(logger, tmp_path):
    for step in range(1, 31):
        logger.log_metrics({"loss": 1.0}, step, "train", 1)
    logger.flush()
    steps = [step for tag, step, _ in scalars(tmp_path / "tensorboard") if tag == "train/loss"]
    assert steps == list(range(1, 31))


def test_zero_seconds_between_flushes_puts_each_row_on_disk_at_once(tmp_path):
    logger = TensorBoardLoggerConfig(flush_every_s=0).create(tmp_path)
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    assert scalars(tmp_path / "tensorboard")[0] == ("train/loss", 1, 1.0)
    logger.finalize("completed")


def test_nan_and_infinity_are_kept(logger, tmp_path):
    logger.log_metrics({"a": math.nan, "b": math.inf, "c": 1e300}, 1, "train", 1)
    logger.finalize("completed")
    values = {tag: value for tag, _, value in scalars(tmp_path / "tensorboard")}
    assert math.isnan(values["train/a"])
    assert values["train/b"] == values["train/c"] == math.inf  # event files hold float32


def test_names_of_any_kind_stay_apart(logger, tmp_path):
    names = ["a b", "a_b", "é", "/a", "\ud800", ""]
    logger.log_metrics(dict.fromkeys(names, 1.0), 1, "train", 1)
    logger.finalize("completed")
    tags = {tag for tag, _, _ in scalars(tmp_path / "tensorboard")}
    assert tags >= {"train/a b", "train/a_b", "train/é", "train//a", "train/\\ud800", "train/"}


def test_config_and_texts_are_text_summaries(logger, tmp_path):
    logger.log_config({"seed": 3})
    logger.log_text("parameters", "a | 3", 5)
    logger.finalize("completed")
    texts = {
        value.tag: (event.step, value.tensor.string_val[0].decode())
        for event in read_events(tmp_path / "tensorboard")
        for value in event.summary.value
        if value.HasField("tensor")
    }
    assert texts["config/text_summary"] == (0, '    {\n      "seed": 3\n    }')
    assert texts["parameters/text_summary"] == (5, "a | 3")


def plugin_tags(folder):
    return [
        value.tag
        for event in read_events(folder)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]


def test_a_config_and_parameters_that_stay_the_same_are_texts_once(logger, tmp_path):
    for seed in (3, 3, 4):
        logger.log_config({"seed": seed})
        logger.log_model("a table")
    logger.finalize("completed")
    tags = [v.tag for e in read_events(tmp_path / "tensorboard") for v in e.summary.value]
    assert tags.count("config/text_summary") == 2
    assert tags.count("parameters/text_summary") == 1


@pytest.mark.parametrize(
    ("status", "ends"), [("completed", 1), ("finished", 0), ("stopped", 0), ("failed", 0)]
)
def test_only_a_run_that_is_completed_has_an_end(logger, tmp_path, status, ends):
    logger.log_config({"seed": 3})
    logger.finalize(status)
    logger.log_metrics({"loss": 1.0}, 1, "test", 1)  # opened again, for an evaluation
    logger.finalize(status)
    tags = plugin_tags(tmp_path / "tensorboard")
    assert tags.count("_hparams_/session_start_info") == 1
    assert tags.count("_hparams_/session_end_info") == ends


def test_a_mere_evaluation_is_no_run(logger, tmp_path):
    logger.log_metrics({"loss": 1.0}, 1, "test", 1)
    logger.finalize("completed")
    assert plugin_tags(tmp_path / "tensorboard") == []


def test_an_image_a_histogram_and_a_table_of_any_name_are_kept(logger, tmp_path):
    name = "a b/\ud800"
    logger.log_image(name, np.zeros((1, 2, 4), np.uint8), 1)
    logger.log_histogram(name, np.array([1.0, 3.0]), np.array([0.0, 1.0, 3.0]), 1)
    logger.log_table(name, ["a"], [["\ud800"]], 1)
    logger.finalize("completed")
    values = [v for e in read_events(tmp_path / "tensorboard") for v in e.summary.value]
    assert {v.tag.removesuffix("/text_summary") for v in values} == {"a b/\\ud800"}
    (histogram,) = [v.histo for v in values if v.HasField("histo")]
    assert (histogram.num, histogram.sum, histogram.sum_squares) == (4.0, 6.5, 12.25)
    assert (histogram.min, histogram.max) == (0.0, 3.0)
    assert list(histogram.bucket) == [0.0, 1.0, 3.0]
    (image,) = [v.image for v in values if v.HasField("image")]
    assert (image.height, image.width, image.colorspace) == (1, 2, 4)


def test_opened_again_within_a_second_it_loses_nothing(logger, tmp_path):
    for step in (1, 2, 3):
        logger.log_metrics({"loss": 1.0}, step, "train", 1)
        logger.finalize("completed")
        logger.finalize("completed")
    folder = tmp_path / "tensorboard"
    assert len(list(folder.iterdir())) == 3
    assert sorted(step for tag, step, _ in scalars(folder) if tag == "train/loss") == [1, 2, 3]


def test_creating_the_tool_writes_nothing(logger, tmp_path):
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_is_raised():
    logger = TensorBoardLoggerConfig(flush_every_s=0).create(Path("/dev/null"))
    with pytest.raises(OSError):
        logger.log_metrics({"loss": 1.0}, 1, "train", 1)


def test_a_run_without_a_folder_has_no_event_files():
    assert isinstance(TensorBoardLoggerConfig().create(None), NullLogger)


def test_negative_seconds_are_reported():
    with pytest.raises(ConfigError, match=r"tool.flush_every_s: found -1"):
        check_configs(tool=TensorBoardLoggerConfig(flush_every_s=-1))


def test_importing_the_loggers_loads_no_backend_package():
    program = """
import sys
import xtrainer.loggers, xtrainer.launch
from jax._src import xla_bridge
print([name for name in ("mlflow", "tensorboardX", "wandb") if name in sys.modules])
print(xla_bridge.backends_are_initialized())
"""
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert out.stdout.split("\n")[:2] == ["[]", "False"], out.stderr

"""The composite passes on, opens late, closes all; values are numbers or refused."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.config import check_configs
from xtrainer.errors import ConfigError, MetricError
from xtrainer.loggers import LoggerConfig, LoggerTool, LoggerToolConfig, MultiLogger, NullLogger
from xtrainer.loggers.base import host_floats


class Recorder(LoggerTool):
    def __init__(self, fail_in=()):
        self.calls = []
        self.fail_in = fail_in

    def _note(self, name, *args):
        self.calls.append((name, *args))
        if name in self.fail_in:
            raise OSError(f"{name} failed")

    def open(self):
        self._note("open")

    def log_config(self, config):
        self._note("config", dict(config))

    def log_metrics(self, metrics, step, mode, epoch):
        self._note("metrics", metrics, step, mode, epoch)

    def log_text(self, key, text, step):
        self._note("text", key, text, step)

    def log_model(self, table):
        self._note("model", table)

    def log_image(self, key, image, step):
        self._note("image", key, image.tolist(), step)

    def log_histogram(self, key, counts, edges, step):
        self._note("histogram", key, counts.tolist(), edges.tolist(), step)

    def log_table(self, key, columns, rows, step):
        self._note("table", key, columns, rows, step)

    def log_best(self, metrics, step):
        self._note("best", metrics, step)

    def flush(self):
        self._note("flush")

    def finalize(self, status):
        self._note("finalize", status)


def test_every_tool_is_told_everything_in_order():
    tools = [Recorder(), Recorder()]
    logger = MultiLogger(tools)
    logger.log_config({"seed": 0})
    logger.log_metrics({"loss": 1}, 5, "train", 1)
    logger.log_text("table", "a b", 5)
    logger.log_model("parameters")
    logger.log_image("image", [[0.0, 1.0]], 5)
    logger.log_histogram("h", [1, 2], [0, 1, 2], 5)
    logger.log_table("t", ("a", "b"), [("x", np.int64(1))], 5)
    logger.log_best({"loss": np.float32(0.5)}, 5)
    logger.flush()
    logger.finalize("completed")
    for tool in tools:
        assert tool.calls == [
            ("open",),
            ("config", {"seed": 0}),
            ("metrics", {"loss": 1.0}, 5, "train", 1),
            ("text", "table", "a b", 5),
            ("model", "parameters"),
            ("image", "image", [[[0], [255]]], 5),
            ("histogram", "h", [1.0, 2.0], [0.0, 1.0, 2.0], 5),
            ("table", "t", ["a", "b"], [["x", 1]], 5),
            ("best", {"loss": 0.5}, 5),
            ("flush",),
            ("finalize", "completed"),
        ]


def test_nothing_is_opened_or_closed_before_the_first_row():
    tool = Recorder()
    logger = MultiLogger([tool])
    logger.flush()
    logger.finalize("completed")
    assert tool.calls == []


def test_a_second_finalize_does_nothing():
    tool = Recorder()
    logger = MultiLogger([tool])
    logger.open()
    logger.finalize("completed")
    logger.finalize("failed")
    assert tool.calls == [("open",), ("finalize", "completed")]


def test_a_row_after_finalize_opens_the_tools_again():
    tool = Recorder()
    logger = MultiLogger([tool])
    logger.open()
    logger.finalize("completed")
    logger.log_metrics({"loss": 2.0}, 6, "test", 1)
    assert [call[0] for call in tool.calls] == ["open", "finalize", "open", "metrics"]


def test_an_error_of_a_tool_in_a_row_is_raised():
    logger = MultiLogger([Recorder(fail_in=("metrics",))])
    with pytest.raises(OSError, match="metrics failed"):
        logger.log_metrics({"loss": 1.0}, 1, "train", 1)


def test_finalize_closes_every_tool_and_raises_the_first_error():
    tools = [Recorder(), Recorder(("finalize",)), Recorder(("finalize",)), Recorder()]
    logger = MultiLogger(tools)
    logger.open()
    with pytest.raises(OSError, match="finalize failed") as caught:
        logger.finalize("failed")
    assert all(tool.calls[-1] == ("finalize", "failed") for tool in tools)
    assert caught.value.__notes__ == ["Afterwards: OSError: finalize failed"]
    logger.finalize("failed")  # no second time


def test_a_tool_that_cannot_open_closes_those_before_it():
    tools = [Recorder(), Recorder(fail_in=("open",))]
    with pytest.raises(OSError, match="open failed"):
        MultiLogger(tools).open()
    assert tools[0].calls == [("open",), ("finalize", "failed")]


def test_a_bad_value_reaches_no_tool():
    tool = Recorder()
    with pytest.raises(MetricError, match="'shape'"):
        MultiLogger([tool]).log_metrics({"loss": 1.0, "shape": [1, 2]}, 1, "train", 1)
    assert tool.calls == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda logger: logger.log_image("x", np.zeros(3), 1), "The image 'x' has the shape"),
        (lambda logger: logger.log_histogram("x", [1], [0], 1), "The histogram 'x' has counts"),
        (lambda logger: logger.log_table("x", ["a"], [[1, 2]], 1), "The table 'x' has 1 columns"),
        (lambda logger: logger.log_best({"x": "good"}, 1), "The metric 'x' is 'good'"),
    ],
)
def test_what_is_no_image_histogram_or_table_reaches_no_tool(call, message):
    tool = Recorder()
    with pytest.raises(MetricError, match=message):
        call(MultiLogger([tool]))
    assert tool.calls == []


def test_an_image_that_is_changed_afterwards_is_logged_as_it_was():
    seen, pixels = [], np.zeros((1, 1, 3), np.uint8)

    class Seeing(LoggerTool):
        def log_image(self, key, image, step):
            seen.append(image)

    MultiLogger([Seeing()]).log_image("x", pixels, 1)
    pixels[:] = 9
    assert (seen[0] == 0).all()


def test_the_null_logger_takes_everything():
    logger = NullLogger()
    logger.open()
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    logger.finalize("completed")


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, np.float32(1), np.int64(1), np.ones(()), jnp.ones(()), jnp.bfloat16(1)],
    ids=lambda value: type(value).__name__,
)
def test_one_number_of_any_kind_becomes_a_float(value):
    row = host_floats({"x": value})
    assert type(row["x"]) is float and row["x"] == 1.0


def test_nan_and_infinity_stay():
    row = host_floats({"a": float("nan"), "b": -math.inf})
    assert math.isnan(row["a"]) and row["b"] == -math.inf


@pytest.mark.parametrize(
    "value",
    ["1.0", None, [1.0], np.ones(1), np.ones((2, 3)), 1j, np.array("x"), jnp.ones(3), {"a": 1}],
    ids=str,
)
def test_what_is_not_one_number_is_refused_by_name(value):
    with pytest.raises(MetricError, match=r"The metric 'grad norm/a' is .*expected one number"):
        host_floats({"grad norm/a": value})


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(MetricError, match="metric name 3"):
        host_floats({3: 1.0})  # pyright: ignore


def test_a_config_of_no_tool_is_reported():
    config = LoggerConfig(log_tools=[LoggerToolConfig()])
    with pytest.raises(ConfigError, match=r"logger.log_tools\[0\].*LoggerToolConfig, which has no"):
        check_configs(logger=config)


def test_a_tool_of_ones_own_round_trips_through_the_config():
    @dataclass(frozen=True, kw_only=True)
    class MemoryConfig(LoggerToolConfig):
        size: int = 3

        def create(self, folder):
            return Recorder()

    config = LoggerConfig(log_tools=[MemoryConfig(size=4)])
    check_configs(logger=config)
    assert LoggerConfig.from_dict(LoggerConfig, config.to_dict()) == config

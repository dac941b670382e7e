"""Any name and any number is logged by every tool that a run has by default, or is one clear error.

Names of the JSON lines and the table alone: see ``test_loggers_file.py``.
"""

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_loggers_tensorboard import scalars

from xtrainer.errors import MetricError
from xtrainer.loggers import LoggerConfig, LoggerTool, build_loggers, read_metrics

ODD = ["__proto__", "", " ", "a/b.c d", "é🙂", "\ud800", "a\nb", "x" * 300, "step", "epoch", "%s"]
NAMES = st.text(st.characters(), max_size=20) | st.sampled_from(ODD)
NUMBERS = st.one_of(
    st.floats(),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.integers(-100, 100).map(np.int8),
    st.floats(width=32).map(lambda x: np.array(x, np.float32)),
)
NO_NUMBERS = st.one_of(
    st.text(max_size=5), st.none(), st.lists(st.floats(), max_size=2), st.just(np.ones(2)),
    st.just(jnp.ones((1, 1))), st.just(np.array("1")), st.complex_numbers(),
)  # fmt: skip


def build(folder: str) -> LoggerTool:
    config = LoggerConfig(log_path=folder, console_interval_s=0.0, write_interval_s=0.0,
                          on_tool_error="raise")  # fmt: skip
    return build_loggers(config, is_main=True, process_index=0)


def same(found: float, value: Any) -> bool:
    return math.isnan(found) if math.isnan(value) else found == float(value)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the loggers' own handlers alone; pytest's would raise what those forgive."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(NAMES, NUMBERS, max_size=4), min_size=1, max_size=3))
@example([{name: 1.0 for name in ODD}])
@example([{"a": math.nan, "b": math.inf, "c": -math.inf}])
def test_every_tool_has_every_name_and_number(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        logger = build(folder)
        for step, row in enumerate(rows, start=1):
            logger.log_metrics(row, step, "train", 1)
        logger.finalize("completed")
        found = read_metrics(folder)
        assert [row["metrics"].keys() for row in found] == [row.keys() for row in rows]
        for one, row in zip(found, rows, strict=True):
            assert all(same(one["metrics"][key], value) for key, value in row.items())
        tags = [(tag, step) for tag, step, _ in scalars(Path(folder) / "tensorboard")]
        assert len(tags) == len(set(tags)) == sum(len(row) + 1 for row in rows)
        log = (Path(folder) / "output_0.log").read_text(encoding="utf-8")
        assert all(f"step {step} | epoch 1" in log for step in range(1, len(rows) + 1))


@settings(max_examples=40, deadline=None)
@given(NAMES, NO_NUMBERS)
def test_what_is_no_number_is_one_error_that_names_it_and_nothing_is_written(
    name: str, value: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        logger = build(folder)
        with pytest.raises(MetricError) as caught:
            logger.log_metrics({"fine": 1.0, name: value}, 1, "train", 1)
        assert f"The metric {name!r} is" in str(caught.value)
        logger.finalize("completed")
        assert list(Path(folder).iterdir()) == []

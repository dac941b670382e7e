"""A tool that talks to a server has a thread: rows come in order, and nobody waits for it."""

import functools
import http.server
import logging
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loggers import LoggerTool, LoggerToolConfig, MLflowLoggerConfig, WandBLoggerConfig
from xtrainer.loggers import build as building
from xtrainer.loggers.buffer import RowBuffer
from xtrainer.loggers.guarded import GuardedTool
from xtrainer.loggers.queued import QueuedTool

WAIT_S = 10.0
STEP_S = 0.05
"""What a row may cost a step, whatever the server does."""


class Held(LoggerTool):
    """A tool whose rows wait until they are let through."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.error: Exception | None = None

    def open(self) -> None:
        self.told.append("open")

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.told.append(step)

    def log_text(self, key: str, text: str, step: int) -> None:
        self.told.append(key)

    def log_model(self, table: str) -> None:
        self.told.append(table)

    def log_image(self, key: str, image: Any, step: int) -> None:
        self.told.append((key, step))

    def log_histogram(self, key: str, counts: Any, edges: Any, step: int) -> None:
        self.told.append((key, counts, edges, step))

    def log_table(self, key: str, columns: Any, rows: Any, step: int) -> None:
        self.told.append((key, columns, rows, step))

    def log_best(self, metrics: Any, step: int) -> None:
        self.told.append((metrics, step))

    def flush(self) -> None:
        self.told.append("flush")

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": "a"}

    def load_state_dict(self, state: Any, step: int) -> None:
        self.told.append(f"back to {step}")

    def finalize(self, status: str) -> None:
        self.told.append(status)


@pytest.fixture
def tool() -> Iterator[Held]:
    held = Held()
    yield held
    held.gate.set()


def log(logger: LoggerTool, *steps: int) -> None:
    for step in steps:
        logger.log_metrics({"loss": 1.0}, step, "train", 1)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("log-")]


def test_everything_comes_in_order_and_in_one_thread_that_ends(tool: Held) -> None:
    tool.gate.set()
    queued = QueuedTool(tool)
    queued.load_state_dict({}, 3)
    queued.open()
    log(queued, 1, 2)
    queued.log_text("note", "", 2)
    queued.flush()
    assert tool.told == ["back to 3", "open", 1, 2, "note", "flush"]
    log(queued, 3)
    queued.load_state_dict({}, 2)
    queued.finalize("completed")
    assert tool.told[6:] == [3, "back to 2", "completed"]
    assert tool.threads == {"log-Held"} and threads() == []
    assert (queued.kind, queued.state_dict()) == ("Held", {"run_id": "a"})
    queued.finalize("completed")  # no second time
    assert tool.told[-2:] == ["back to 2", "completed"]


def test_images_histograms_tables_and_best_values_come_in_order_too(tool: Held) -> None:
    queued = QueuedTool(tool)
    queued.open()
    log(queued, 1)
    queued.log_model("parameters")
    queued.log_image("image", np.zeros((1, 1, 1), np.uint8), 2)
    queued.log_histogram("h", "counts", "edges", 2)  # type: ignore[arg-type]
    queued.log_table("t", ["a"], [[1]], 2)
    queued.log_best({"loss": 1.0}, 2)
    assert tool.told == ["open"]  # nobody has waited
    tool.gate.set()
    queued.finalize("completed")
    assert tool.told[1:] == [
        1, "parameters", ("image", 2), ("h", "counts", "edges", 2), ("t", ["a"], [[1]], 2),
        ({"loss": 1.0}, 2), "completed",
    ]  # fmt: skip


def test_few_images_wait_and_rows_stay(tool: Held, caplog: pytest.LogCaptureFixture) -> None:
    queued = QueuedTool(tool)
    queued.open()
    log(queued, 0)
    assert tool.begun.wait(WAIT_S)
    for step in range(1, 31):
        log(queued, step)
        queued.log_image("image", np.zeros((1, 1, 1), np.uint8), step)
    assert queued.dropped == 10 and "oldest rows are dropped" in caplog.text
    tool.gate.set()
    queued.finalize("completed")
    images = [told[1] for told in tool.told if isinstance(told, tuple)]
    assert images == list(range(11, 31))
    assert [told for told in tool.told if isinstance(told, int)] == list(range(31))


def test_it_can_be_opened_again(tool: Held) -> None:
    tool.gate.set()
    queued = QueuedTool(tool)
    for status in ("stopped", "completed"):
        queued.open()
        log(queued, 1)
        queued.finalize(status)
    assert tool.told == ["open", 1, "stopped", "open", 1, "completed"]


def test_nobody_waits_for_a_tool_that_hangs(tool: Held, caplog: pytest.LogCaptureFixture) -> None:
    queued = QueuedTool(tool, flush_s=0.1, close_s=0.1)
    queued.open()
    log(queued, 1)
    assert tool.begun.wait(WAIT_S)
    start = time.perf_counter()
    log(queued, *range(2, 2000))
    assert time.perf_counter() - start < 1998 * STEP_S / 100
    start = time.perf_counter()
    for _ in range(50):
        queued.flush()
    assert 0.1 <= time.perf_counter() - start < 1.0  # waits in vain once, not fifty times
    assert queued.state_dict() == {"run_id": "a"}
    assert "Held has not taken" in caplog.text
    queued.finalize("completed")
    assert "Held is too slow: 1000 calls are waiting for it" in caplog.text
    assert caplog.text.count("oldest rows are dropped") == 1
    said = [record.getMessage() for record in caplog.records]
    dropped = int(next(text for text in said if "were dropped." in text).split()[4])
    undelivered = int(next(text for text in said if "hangs" in text).split()[2])
    tool.gate.set()
    deadline = time.monotonic() + WAIT_S
    while threads():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    steps = [told for told in tool.told if isinstance(told, int)]
    assert steps == [1, *range(2000 - len(steps) + 1, 2000)]
    assert len(steps) - 1 == undelivered
    assert dropped == 1999 - len(steps)


def test_a_tool_that_hung_at_the_end_goes_on_when_it_is_opened_again(tool: Held) -> None:
    queued = QueuedTool(tool, flush_s=0.05, close_s=0.05)
    queued.open()
    log(queued, 1)
    queued.finalize("completed")
    queued.open()
    log(queued, 2)
    tool.gate.set()
    queued.close_s = WAIT_S
    queued.finalize("stopped")
    assert tool.told == ["open", 1, "completed", "open", 2, "stopped"]


def test_an_error_is_raised_by_a_later_call(tool: Held) -> None:
    tool.error = OSError("planted")
    tool.gate.set()
    queued = QueuedTool(tool)
    queued.open()
    log(queued, 1)
    queued.flush()
    with pytest.raises(OSError, match="planted"):
        log(queued, 2)
    queued.finalize("failed")
    assert tool.told == ["open", "flush", "failed"]


def test_what_cannot_be_opened_is_told_by_open() -> None:
    class Closed(LoggerTool):
        def open(self) -> None:
            raise OSError("no server")

    with pytest.raises(OSError, match="no server"):
        QueuedTool(Closed()).open()
    assert threads() == []


def test_tools_that_talk_to_a_server_are_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "mlflow.tracking"):  # to import these takes seconds, and starts threads
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    tools = [WandBLoggerConfig(), MLflowLoggerConfig(), xt.FileLoggerConfig()]
    config = xt.LoggerConfig(log_path=str(tmp_path), log_tools=tools)
    made = building.build_loggers(config, is_main=True, process_index=0).tools  # type: ignore[attr-defined]
    outer = [tool.tool for tool in made if isinstance(tool, RowBuffer)]
    assert [type(tool) for tool in outer] == [QueuedTool, QueuedTool, GuardedTool]
    assert [type(tool.tool) for tool in outer[:2]] == [GuardedTool, GuardedTool]
    assert [tool.kind for tool in outer] == ["WandBLogger", "MLflowLogger", "FileLogger"]


# A server on this machine.


class Server:
    """Takes rows over HTTP: well, with an error, or never, as ``manner`` says."""

    def __init__(self) -> None:
        self.manner, self.rows = "well", []
        self.go_on = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.manner == "hang":
                    outer.go_on.wait(WAIT_S)
                if outer.manner == "well":
                    outer.rows.append(int(body))
                self.send_response(500 if outer.manner == "fail" else 200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        """Ends it."""
        self.go_on.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Sender(LoggerTool):
    """Sends the step of every row."""

    is_remote = True

    def __init__(self, url: str) -> None:
        self.url = url

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        with urllib.request.urlopen(self.url, str(step).encode(), timeout=WAIT_S):
            pass


@dataclass(frozen=True, kw_only=True)
class SenderConfig(LoggerToolConfig):
    """Of a :class:`Sender`."""

    url: str

    def create(self, folder: Path | None) -> LoggerTool:
        return Sender(self.url)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    return probes.Repeatable(probes.traced())


@pytest.mark.parametrize("manner", ["well", "fail", "hang"])
def test_a_run_is_the_same_whatever_the_server_does(
    stage: probes.Repeatable,
    server: Server,
    tmp_path: Path,
    manner: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    twin = stage.begin()
    twin.train_model(probes.numbered(6), num_epochs=2)
    expected = probes.learned(twin)
    close_s = 0.3 if manner == "hang" else WAIT_S
    short = functools.partial(QueuedTool, flush_s=0.1, close_s=close_s)
    monkeypatch.setattr(building, "QueuedTool", short)
    monkeypatch.setattr("xtrainer.loggers.guarded._FIRST_PAUSE_S", 0.0)
    trainer = stage.begin()
    config = zoo.file_logger(tmp_path, 1, SenderConfig(url=server.url))
    trainer.init_logger(config)
    took: list[float] = []
    log_metrics = trainer.logger.log_metrics

    def timed(metrics: Any, step: int, *args: Any) -> None:
        if step == 4:
            server.manner = manner
        start = time.perf_counter()
        log_metrics(metrics, step, *args)
        took.append(time.perf_counter() - start)

    trainer.logger.log_metrics = timed
    with caplog.at_level(logging.WARNING, logger="xtrainer"):
        trainer.train_model(probes.numbered(6), num_epochs=2)
    assert trainer.stop_reason is xt.StopReason.FINISHED
    probes.assert_same_course(probes.learned(trainer), expected)
    assert len(took) == 14 and sorted(took)[-2] < STEP_S  # one may meet a busy machine
    rows = [row["step"] for row in xt.read_metrics(tmp_path)]
    if manner == "well":
        assert server.rows == rows
    else:
        assert server.rows == [1, 2, 3][: len(server.rows)]
        lost = {"fail": "Sender is switched off", "hang": "Sender hangs: 1"}
        text = caplog.text.replace("has failed 6 times in a row and ", "")
        assert lost[manner] in text
    if manner == "fail":
        (said,) = [r.getMessage() for r in caplog.records if "lost in all" in r.getMessage()]
        lost_rows = len(rows) - len(server.rows) + 1  # and the text of the summary
        assert said == f"Sender: {lost_rows} rows were lost in all."

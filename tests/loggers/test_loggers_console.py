"""Who sees which line: stdout, the program's own handlers, the log file of a process."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtrainer.loggers.console import CommandLog, ConsoleLogger, setup_command_log

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = logging.getLogger("xtrainer")


@pytest.fixture(autouse=True)
def bare_logging(monkeypatch):
    """Logging as a plain script has it; pytest's own handlers are out of the way."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    before = (PACKAGE.level, PACKAGE.propagate, list(PACKAGE.handlers))
    yield
    assert (PACKAGE.level, PACKAGE.propagate, PACKAGE.handlers) == before


def run(program: str) -> tuple[str, str]:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_row_is_one_line_on_stdout(capsys):
    console = ConsoleLogger()
    console.log_metrics({"loss_mean": 2.31234, "lr": 1e-5}, 100, "train", 1)
    console.finalize("completed")
    assert (
        capsys.readouterr().out == "step 100 | epoch 1 | train/loss_mean 2.312 | train/lr 1e-05\n"
    )


def test_other_messages_of_the_package_are_shown_while_it_is_open(capsys):
    console = ConsoleLogger()
    console.open()
    logging.getLogger("xtrainer.loop").info("stopped early")
    console.finalize("completed")
    logging.getLogger("xtrainer.loop").info("after the end")
    assert capsys.readouterr().out == "stopped early\n"


def test_a_text_is_shown_under_its_key(capsys):
    console = ConsoleLogger()
    console.log_text("parameters", "a | 3", 0)
    console.finalize("completed")
    assert capsys.readouterr().out == "parameters at step 0:\na | 3\n"


def test_two_consoles_show_a_line_once_and_the_second_goes_on_alone(capsys):
    first, second = ConsoleLogger(), ConsoleLogger()
    first.open()
    second.open()
    second.log_metrics({"a": 1.0}, 1, "train", 1)
    first.finalize("completed")
    second.log_metrics({"a": 2.0}, 2, "train", 1)
    second.finalize("completed")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["step 1 | epoch 1 | train/a 1", "step 2 | epoch 1 | train/a 2"]


def test_a_program_that_shows_info_gets_each_line_once(capsys):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    old, root.level = root.level, logging.INFO
    try:
        console = ConsoleLogger()
        console.log_metrics({"a": 1.0}, 1, "train", 1)
        console.finalize("completed")
    finally:
        root.level = old
    assert stream.getvalue() == "step 1 | epoch 1 | train/a 1\n"
    assert capsys.readouterr().out == ""


def test_a_program_that_shows_warnings_gets_those_only(capsys, tmp_path):
    stream = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(stream))
    console, file = ConsoleLogger(), setup_command_log(tmp_path, "output", 0)
    console.log_metrics({"a": 1.0}, 1, "train", 1)
    logging.getLogger("xtrainer.loop").warning("careful")
    console.finalize("completed")
    file.finalize("completed")
    assert stream.getvalue() == "careful\n"
    assert capsys.readouterr().out == "step 1 | epoch 1 | train/a 1\n"
    assert len((tmp_path / "output_0.log").read_text().splitlines()) == 2


def test_a_level_set_on_the_package_is_kept(capsys):
    PACKAGE.setLevel(logging.WARNING)
    try:
        console = ConsoleLogger()
        console.log_metrics({"a": 1.0}, 1, "train", 1)
        console.finalize("completed")
        assert PACKAGE.level == logging.WARNING
    finally:
        PACKAGE.setLevel(logging.NOTSET)
    assert capsys.readouterr().out == ""


def test_a_handler_set_on_the_package_is_the_only_one(capsys):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    try:
        console = ConsoleLogger()
        console.log_metrics({"a": 1.0}, 1, "train", 1)
        console.finalize("completed")
    finally:
        PACKAGE.removeHandler(handler)
        PACKAGE.setLevel(logging.NOTSET)
    assert stream.getvalue() == "step 1 | epoch 1 | train/a 1\n"
    assert capsys.readouterr().out == ""


def test_a_script_that_imports_orbax_sees_rows_on_stdout_only():
    out, err = run("""
import orbax.checkpoint  # puts a handler for warnings on the root logger
from xtrainer.loggers.console import ConsoleLogger
console = ConsoleLogger()
console.log_metrics({"a": 1.0}, 1, "train", 1)
console.finalize("completed")
""")
    assert out == "step 1 | epoch 1 | train/a 1\n"
    assert "step 1" not in err


def test_the_command_log_of_a_process_bears_its_number(tmp_path):
    log = CommandLog(tmp_path / "run", "output", 3)
    log.open()
    logging.getLogger("xtrainer.data").info("the loader has %d batches", 7)
    log.finalize("completed")
    log.finalize("completed")
    text = (tmp_path / "run" / "output_3.log").read_text()
    assert text.endswith("INFO xtrainer.data: the loader has 7 batches\n")


def test_a_command_log_opened_again_goes_on_in_the_file(tmp_path):
    for message in ("first", "second"):
        log = setup_command_log(tmp_path, "output", 0)
        logging.getLogger("xtrainer").info(message)
        log.finalize("completed")
    lines = (tmp_path / "output_0.log").read_text().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["first", "second"]


def test_the_command_log_is_not_shown_on_stdout(capsys, tmp_path):
    log = setup_command_log(tmp_path, "output", 1)
    logging.getLogger("xtrainer").info("only in the file")
    log.finalize("completed")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_console_and_command_log_end_in_any_order(tmp_path, capsys):
    console, log = ConsoleLogger(), setup_command_log(tmp_path, "output", 0)
    console.open()
    console.finalize("completed")
    logging.getLogger("xtrainer").info("still in the file")
    log.finalize("completed")
    assert "still in the file" in (tmp_path / "output_0.log").read_text()
    assert capsys.readouterr().out == ""

"""Which tools a process has, and a run folder that is tried out before anything is written."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from xtrainer.config import check_configs
from xtrainer.errors import ConfigError
from xtrainer.loggers import (
    FileLoggerConfig,
    LoggerConfig,
    LoggerToolConfig,
    NullLogger,
    TensorBoardLoggerConfig,
    WandBLoggerConfig,
    build_loggers,
    prepare_run_folder,
    read_metrics,
    run_folder,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_without_a_config_nothing_is_logged():
    assert type(build_loggers(None, is_main=True, process_index=0)) is NullLogger


def test_the_main_process_writes_all_files(tmp_path):
    config = LoggerConfig(log_path=str(tmp_path / "a" / "b"))
    logger = build_loggers(config, is_main=True, process_index=0)
    logger.log_config({"seed": 0})
    logger.log_metrics({"loss_mean": 1.0}, 50, "train", 1)
    logger.log_metrics({"loss_mean": 2.0}, 50, "val", 1)
    logger.finalize("completed")
    folder = tmp_path / "a" / "b"
    assert names(folder) == [
        "config.json",
        "metrics.jsonl",
        "metrics_train.csv",
        "metrics_val.csv",
        "output_0.log",
        "tensorboard",
    ]
    assert json.loads((folder / "config.json").read_text()) == {"seed": 0}
    assert len(read_metrics(folder)) == 2
    assert "step 50 | epoch 1 | val/loss_mean 2" in (folder / "output_0.log").read_text()


@pytest.mark.parametrize("console", [True, False])
def test_without_the_console_rows_are_in_the_text_log_alone(tmp_path, capsys, console):
    config = LoggerConfig(log_path=str(tmp_path), log_tools=[], console=console)
    logger = build_loggers(config, is_main=True, process_index=0)
    logger.log_metrics({"loss": 1.0}, 1, "val", 1)
    logger.finalize("completed")
    row = "step 1 | epoch 1 | val/loss 1\n"
    assert row in (tmp_path / "output_0.log").read_text()
    assert capsys.readouterr().out == (row if console else "")


def test_nothing_is_written_before_the_first_row(tmp_path):
    config = LoggerConfig(log_path=str(tmp_path / "run"))
    logger = build_loggers(config, is_main=True, process_index=0)
    logger.finalize("failed")
    assert names(tmp_path) == []


def test_other_processes_write_their_messages_only(tmp_path):
    config = LoggerConfig(log_path=str(tmp_path), cmd_logging_name="messages")
    logger = build_loggers(config, is_main=False, process_index=2)
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    logging.getLogger("xtrainer.loop").info("here")
    logger.finalize("completed")
    assert names(tmp_path) == ["messages_2.log"]
    assert "here" in (tmp_path / "messages_2.log").read_text()


def test_without_a_path_only_the_console_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = build_loggers(LoggerConfig(), is_main=True, process_index=0)
    logger.log_config({"seed": 0})
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    logger.log_text("note", "text", 1)
    logger.flush()
    logger.finalize("completed")
    assert names(tmp_path) == []
    assert "train/loss 1" in capsys.readouterr().out


def test_a_tool_of_ones_own_is_given_the_folder(tmp_path):
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class OwnConfig(LoggerToolConfig):
        def create(self, folder):
            seen.append(folder)
            return NullLogger()

    config = LoggerConfig(log_path=str(tmp_path), run_name="r1", log_tools=[OwnConfig()])
    build_loggers(config, is_main=True, process_index=0)
    assert seen == [tmp_path.resolve() / "r1"]


def test_the_default_tools_are_files_and_tensorboard():
    assert LoggerConfig().log_tools == [FileLoggerConfig(), TensorBoardLoggerConfig()]


def test_the_config_round_trips():
    config = LoggerConfig(log_path="runs", run_name="a", log_tools=[WandBLoggerConfig(tags=["x"])])
    assert LoggerConfig.from_dict(LoggerConfig, json.loads(json.dumps(config.to_dict()))) == config


def test_the_run_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(LoggerConfig(log_path="runs")) == tmp_path.resolve() / "runs"
    assert run_folder(LoggerConfig(log_path="x", run_name="y")) == tmp_path.resolve() / "x" / "y"


def test_the_run_folder_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(LoggerConfig(log_path="~/runs")) == tmp_path.resolve() / "runs"


def test_no_path_is_no_run_folder():
    assert run_folder(None) is None
    assert run_folder(LoggerConfig()) is None


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 65, "a b", "a\n"])
def test_a_run_name_that_could_leave_the_folder_is_reported(name):
    with pytest.raises(ConfigError, match=r"logger.run_name: found"):
        check_configs(logger=LoggerConfig(log_path="runs", run_name=name))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"log_every_n_steps": 0}, "log_every_n_steps: found 0, expected"),
        ({"log_path": " "}, "log_path: found ' '"),
        ({"cmd_logging_name": "a/b"}, "cmd_logging_name: found 'a/b'"),
        ({"run_name": "a"}, "run_name: found 'a' without a log_path"),
    ],
)
def test_values_that_cannot_work_are_reported(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_configs(logger=LoggerConfig(**fields))
    with pytest.raises(ConfigError, match=message):
        build_loggers(LoggerConfig(**fields), is_main=True, process_index=0)


@pytest.mark.parametrize("below", ["", "run", "deep/er/run"])
def test_a_log_path_that_is_a_file_is_refused(below, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    config = LoggerConfig(log_path=str(file / below))
    with pytest.raises(
        ConfigError, match=r"log_path: found '.*/file', which is a file; expected a"
    ):
        build_loggers(config, is_main=True, process_index=0)
    assert file.read_text() == "mine"
    assert names(tmp_path) == ["file"]


def test_a_log_path_that_cannot_be_written_is_refused():
    config = LoggerConfig(log_path="/proc/self/net/run")
    with pytest.raises(ConfigError, match=r"where nothing can be written.*Choose another log_path"):
        build_loggers(config, is_main=True, process_index=0)


def test_a_dangling_link_is_refused(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere" / "far")
    with pytest.raises(ConfigError, match="no folder"):
        prepare_run_folder(link)
    assert names(tmp_path) == ["link"]


def test_folders_made_for_the_probe_are_removed(tmp_path):
    prepare_run_folder(tmp_path / "a" / "b" / "c")
    assert names(tmp_path) == []


def test_a_probe_that_fails_half_way_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="where nothing can be written"):
        prepare_run_folder(tmp_path / "a" / "b" / ("x" * 300))
    assert names(tmp_path) == []


def test_the_probe_leaves_a_folder_with_a_run_as_it_was(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("rows\n")
    prepare_run_folder(tmp_path)
    assert names(tmp_path) == ["metrics.jsonl"]


def test_a_bad_folder_is_found_before_any_tool_is_made(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class FailingConfig(LoggerToolConfig):
        def create(self, folder: Path | None):
            raise AssertionError("too early")

    (tmp_path / "file").write_text("")
    config = LoggerConfig(log_path=str(tmp_path / "file"), log_tools=[FailingConfig()])
    with pytest.raises(ConfigError, match="which is a file"):
        build_loggers(config, is_main=True, process_index=0)

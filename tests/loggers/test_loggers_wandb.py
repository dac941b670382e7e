"""The calls to W&B by a recording stand-in; one real run without a network."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import probes
import pytest

import xtrainer as xt
from xtrainer.config import check_configs
from xtrainer.errors import ConfigError, MissingDependencyError
from xtrainer.loggers import WandBLoggerConfig
from xtrainer.loggers.wandb import WandBLogger

ROOT = Path(__file__).resolve().parents[2]


class FakeRun:
    def __init__(self):
        self.id, self.rows, self.exit_codes, self.settings = "abc", [], [], {}
        self.config = SimpleNamespace(update=lambda config, **_: self.settings.update(config))

    def define_metric(self, name, step_metric):
        self.axis = (name, step_metric)

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


class FakeWandB:
    Settings = dict

    def __init__(self, active=None):
        self.run, self.begun, self.inits = active, FakeRun(), []

    def init(self, **arguments):
        self.inits.append(arguments)
        return self.begun


def make(tmp_path, active=None, **fields):
    package = FakeWandB(active)
    folder = tmp_path / "run_a"
    return WandBLogger(WandBLoggerConfig(**fields), folder, package), package  # pyright: ignore


def test_rows_bear_the_set_and_the_step_is_their_axis(tmp_path):
    logger, package = make(tmp_path)
    logger.log_metrics({"loss": 1.0}, 20, "train", 2)
    logger.log_metrics({"loss": 2.0}, 10, "val", 1)  # a step lower than the last, after a resume
    assert package.begun.axis == ("*", "step")
    assert package.begun.rows == [
        {"train/loss": 1.0, "step": 20, "epoch": 2},
        {"val/loss": 2.0, "step": 10, "epoch": 1},
    ]


def test_the_run_is_named_after_its_folder_and_sends_no_code(tmp_path):
    logger, package = make(tmp_path, project="p", mode="offline", tags=["x"])
    logger.open()
    logger.open()
    (arguments,) = package.inits
    assert arguments["name"] == "run_a"
    assert (arguments["project"], arguments["mode"], arguments["tags"]) == ("p", "offline", ["x"])
    quiet = {"save_code": False, "disable_git": True, "console": "off", "x_disable_meta": True}
    assert arguments["settings"] == quiet


def test_a_secret_in_the_name_is_not_sent(tmp_path):
    logger, package = make(tmp_path, name="of https://me:pw@host")
    logger.open()
    assert package.inits[0]["name"] == "of https://***@host"


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("stopped", 0), ("failed", 1)])
def test_the_status_becomes_the_exit_code_once(tmp_path, status, code):
    logger, package = make(tmp_path)
    logger.open()
    logger.finalize(status)
    logger.finalize(status)
    assert package.begun.exit_codes == [code]


def test_opened_again_it_goes_on_with_the_same_run(tmp_path):
    logger, package = make(tmp_path)
    logger.open()
    logger.finalize("completed")
    logger.log_metrics({"loss": 1.0}, 1, "test", 1)
    assert [(init["id"], init["resume"]) for init in package.inits] == [
        (None, None),
        ("abc", "allow"),
    ]


def test_a_process_that_goes_on_from_a_checkpoint_goes_on_with_its_run(tmp_path, monkeypatch):
    package = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", package)

    def train(steps):
        logger = xt.LoggerConfig(log_path=str(tmp_path / "run"), log_tools=[WandBLoggerConfig()])
        saving = xt.ModelCheckpointConfig(every_n_steps=2)
        trainer = probes.traced(logger=logger, callbacks=[saving])
        trainer.train_model(probes.numbered(4), num_train_steps=steps)

    train(2)
    train(4)
    assert [init["id"] for init in package.inits] == [None, "abc"]


def test_an_active_run_is_used_and_left_open(tmp_path):
    active = FakeRun()
    logger, package = make(tmp_path, active=active)
    logger.log_config({"seed": 1})
    logger.log_text("table", "a", 3)
    logger.finalize("completed")
    assert active.rows == [{"text/table": "a", "step": 3}]
    assert active.settings == {"seed": 1}
    assert active.exit_codes == [] and package.inits == []


def test_a_run_without_a_folder_is_refused():
    with pytest.raises(ConfigError, match=r"log_path=None, expected a folder. Set LoggerConfig"):
        WandBLoggerConfig().create(None)


def test_an_unknown_mode_is_reported():
    with pytest.raises(ConfigError, match=r"tool.mode: found 'ofline'.*Did you mean 'offline'"):
        check_configs(tool=WandBLoggerConfig(mode="ofline"))  # pyright: ignore


def test_a_missing_package_gives_the_line_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "xtrainer\[wandb\]"'):
        WandBLoggerConfig().create(tmp_path)


def test_a_real_offline_run_leaves_a_file_with_the_rows(tmp_path):
    program = """
import sys
from pathlib import Path
from xtrainer.loggers import WandBLoggerConfig
logger = WandBLoggerConfig(mode="offline").create(Path(sys.argv[1]))
logger.log_config({"seed": 1234567})
for step in (2, 1):
    logger.log_metrics({"loss_of_this_test": 1.0}, step, "train", 1)
logger.log_text("note", "written offline", 2)
logger.finalize("completed")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run_file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = run_file.read_bytes()
    assert content.count(b"train/loss_of_this_test") >= 2
    assert b"1234567" in content and b"written offline" in content

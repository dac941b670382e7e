"""The calls to W&B by a recording stand-in; real runs without a network, read back from disk."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import probes
import pytest
from PIL import Image

import xtrainer as xt
from xtrainer.config import check_configs
from xtrainer.errors import ConfigError, MissingDependencyError
from xtrainer.loggers import WandBLoggerConfig
from xtrainer.loggers.wandb import WandBLogger

ROOT = Path(__file__).resolve().parents[2]


class FakeRun:
    def __init__(self):
        self.id, self.rows, self.exit_codes, self.settings = "abc", [], [], {}
        self.offline = False
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


# A real run without a network, and one that goes on with it in another process.

PROGRAM = """
import json, logging, sys
from pathlib import Path
import numpy as np
from xtrainer.loggers import WandBLoggerConfig
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder, state, steps, status = Path(sys.argv[1]), *map(json.loads, sys.argv[2:5])
logger = WandBLoggerConfig(mode="offline", project="p", tags=["x"]).create(folder)
if state:
    logger.load_state_dict(state, steps[0] - 1)
logger.log_config({"seed": 7, "optimizer": {"lr": 0.5}})
logger.log_model("a table of parameters")
for step in steps:
    logger.log_metrics({"loss": 1 / step}, step, "train", 1)
logger.log_image("samples", np.full((2, 3, 3), 9, np.uint8), steps[-1])
logger.log_histogram("w", np.ones(1000), np.linspace(0.0, 1.0, 1001), steps[-1])
logger.log_table("confusion", ["a", "b"], [["x", 1], [2, None]], steps[-1])
logger.log_best({"loss": 1 / steps[-1]}, steps[-1])
Path(sys.argv[5]).write_text(json.dumps(logger.state_dict()))
logger.finalize(status)
"""


def run_offline(folder, state, steps, status):
    """Runs that program; returns the state of its tool, and what it said."""
    told = folder.parent / "state.json"
    arguments = [str(folder), *map(json.dumps, (state, steps, status)), str(told)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(told.read_text()), done.stdout


def records(path):
    """Returns the records of a W&B file: a log as LevelDB's, of messages that the package has.

    W&B has no public reader of it; only ``wandb sync`` reads it.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, body, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:  # no header fits into what is left of a block
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        body += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(body))
            body = b""
    return found


def rows_of(found):
    items = [
        record.history.item for record in found if record.WhichOneof("record_type") == "history"
    ]
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row}
        for row in items
    ]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The records of two processes of one run, in their order, and what they said."""
    folder = tmp_path_factory.mktemp("wandb") / "run b"
    state, first = run_offline(folder, {}, [1, 2, 3], "failed")
    again, second = run_offline(folder, state, [3, 4], "completed")
    assert again == state
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return SimpleNamespace(
        folder=folder, id=state["run_id"], said=(first, second), paths=paths,
        parts=[records(path) for path in paths],
    )  # fmt: skip


def of_kind(found, kind):
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_offline_a_run_that_was_resumed_is_one_run(offline):
    assert [path.name for path in offline.paths] == [f"run-{offline.id}.wandb"] * 2
    for part in offline.parts:
        (run,) = of_kind(part, "run")
        assert (run.run_id, run.project, run.display_name) == (offline.id, "p", "run b")
        assert list(run.tags) == ["x"]
    assert [of_kind(part, "exit")[0].exit_code for part in offline.parts] == [1, 0]


def test_offline_rows_have_the_values_and_steps(offline):
    rows = [[row for row in rows_of(part) if "train/loss" in row] for part in offline.parts]
    values = [[(row["step"], row["train/loss"], row["epoch"]) for row in part] for part in rows]
    assert values == [[(1, 1.0, 1), (2, 0.5, 1), (3, 1 / 3, 1)], [(3, 1 / 3, 1), (4, 0.25, 1)]]
    (metric,) = of_kind(offline.parts[0], "metric")
    assert (metric.glob_name, metric.step_metric) == ("*", "step")


def test_offline_the_config_the_summary_and_the_parameters_are_kept(offline):
    for part, best in zip(offline.parts, (1 / 3, 0.25), strict=True):
        config = {
            u.key: json.loads(u.value_json) for c in of_kind(part, "config") for u in c.update
        }
        assert config == {"seed": 7, "optimizer": {"lr": 0.5}}
        summary = {u.key: u.value_json for s in of_kind(part, "summary") for u in s.update}
        assert json.loads(summary["best/loss"]) == best
        texts = [row for row in rows_of(part) if "text/parameters" in row]
        assert [row["text/parameters"] for row in texts] == ["a table of parameters"]


def test_offline_images_histograms_and_tables_are_kept(offline):
    rows = {key: value for row in rows_of(offline.parts[0]) for key, value in row.items()}
    files = offline.paths[0].parent / "files"
    image = np.asarray(Image.open(files / rows["image/samples/path"]))
    assert image.shape == (2, 3, 3) and (image == 9).all()
    bins, values = rows["histogram/w/bins"], rows["histogram/w/values"]
    assert values == [2] * 500 and len(bins) == 501  # W&B takes 512 bins
    assert (bins[0], bins[-1]) == (0.0, 1.0)
    table = json.loads((files / rows["table/confusion/path"]).read_text())
    assert (table["columns"], table["data"]) == (["a", "b"], [["x", 1], [2, None]])


def test_offline_the_command_that_sends_all_parts_is_told(offline):
    command = f"wandb sync '{offline.folder}/wandb'/offline-run-*-{offline.id}"
    for said in offline.said:
        assert said.count(command) == 1
    shown = subprocess.run(
        ["bash", "-c", command.replace("wandb sync", f"{sys.executable} -m wandb sync --dry-run")],
        capture_output=True, text=True, timeout=200, cwd=offline.folder, env=os.environ,
    )  # fmt: skip
    assert "Would sync 2 run(s)" in shown.stdout + shown.stderr

"""Are checkpoints of every released format still read? They are kept in ``tests/golden``."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from xtrainer.checkpoint import list_steps, migrate, read_meta
from xtrainer.checkpoint.commit import FORMAT_VERSION
from xtrainer.errors import CheckpointError, CheckpointNotFoundError

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = range(1, FORMAT_VERSION + 1)


@pytest.fixture(scope="module")
def golden_run() -> ModuleType:
    """The program that has written them."""
    spec = importlib.util.spec_from_file_location("golden_run", GOLDEN / "golden_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=FORMATS, ids=[f"format {number}" for number in FORMATS])
def run_folder(request, tmp_path) -> Path:
    """A copy of the run of each format."""
    return shutil.copytree(GOLDEN / f"format_{request.param}", tmp_path / "run")


def test_there_is_one_of_every_format():
    assert {path.name for path in GOLDEN.glob("format_*")} == {f"format_{n}" for n in FORMATS}


TAKEN_AWAY = "['Dense_0']['bias']"
"""BatchNorm subtracts this bias again: its gradient is what rounding leaves, another on each kind
of processor, and Adam makes steps of full size of it."""


def test_a_run_of_an_older_format_goes_on_to_the_same_end(run_folder, golden_run):
    migrate(run_folder)
    expected = json.loads((run_folder / "expected.json").read_text())
    trainer = golden_run.make_trainer(run_folder)
    assert trainer.load_model() == golden_run.STEPS
    assert golden_run.params_of(trainer) == expected["saved"]
    trainer.train_model(golden_run.make_data(), num_train_steps=golden_run.MORE_STEPS)
    found = golden_run.params_of(trainer)
    del expected["later"][TAKEN_AWAY]
    assert expected["later"]
    for path, values in expected["later"].items():
        np.testing.assert_allclose(found[path], values, rtol=1e-5, atol=1e-7)


def test_migrating_twice_changes_nothing_more(run_folder, kit):
    migrate(run_folder)
    before = kit.tree_of(run_folder)
    assert migrate(run_folder) == []
    assert kit.tree_of(run_folder) == before


def test_an_older_format_is_refused_with_what_to_do(tmp_path):
    folder = shutil.copytree(GOLDEN / "format_1", tmp_path / "run") / "checkpoints"
    assert list_steps(folder) == []
    with pytest.raises(CheckpointError, match=r"of format 1, expected 2. Call .*migrate\("):
        read_meta(folder / "3")
    assert migrate(folder / "3") == [3]
    assert list_steps(folder) == [3]


def test_a_metric_that_became_known_later_is_not_lost(tmp_path):
    folder = shutil.copytree(GOLDEN / "format_1", tmp_path / "run") / "checkpoints"
    (folder / "3" / "rank.json").write_text('{"metric": 0.5, "monitor_mode": "min"}')
    migrate(folder)
    meta = read_meta(folder / "3")
    assert (meta["metric"], meta["monitor_mode"]) == (0.5, "min")


def test_what_cannot_be_read_is_told(tmp_path):
    folder = shutil.copytree(GOLDEN / "format_1", tmp_path / "run") / "checkpoints"
    (folder / "3" / "meta" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        migrate(folder)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of any format"):
        migrate(tmp_path)

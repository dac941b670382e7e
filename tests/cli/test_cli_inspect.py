"""Does ``xtrainer inspect`` say what is in a run, and find what is damaged?"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xtrainer.checkpoint import read_meta
from xtrainer.cli.main import main
from xtrainer.testing import flip_bits


@pytest.fixture
def run(lab: Path, tmp_path: Path) -> Path:
    """Gives a copy of the run."""
    return Path(shutil.copytree(lab / "runs" / "tiny", tmp_path / "run"))


def inspect(capsys: pytest.CaptureFixture, folder: Path, *more: str) -> tuple[int, Any]:
    code = main(["inspect", str(folder), *more])
    said = capsys.readouterr().out
    return code, json.loads(said) if "--json" in more else said


def test_the_document_says_what_the_newest_checkpoint_does(
    lab: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = lab / "runs" / "tiny"
    code, found = inspect(capsys, folder, "--json", "--parameters")
    meta = read_meta(folder / "checkpoints" / "9")
    assert (code, found["status"]["name"], found["experiment"]) == (0, "finished", "tiny")
    assert found["progress"] == {"step": 9, "epoch": 3, "examples": 144, "skipped": 0}
    environment = found["environment"]
    assert environment["versions"] == meta["versions"] and environment["mesh"] == meta["mesh"]
    assert (environment["process_count"], environment["git"]) == (1, meta["git"])
    assert found["config"]["optimizer"] == meta["config"]["optimizer"]
    assert found["config"]["data"] == {"batch_size": 16}
    model = found["model"]
    assert model["parameters"] == 8 * 64 + 64 + 64 + 1
    counts = 2  # of the optimizer and of its schedule
    assert model["bytes"] == {"params": 4 * 641, "opt_state": 2 * 4 * 641 + 4 * counts}
    assert {"path": "Dense_1/kernel", "shape": [8, 64], "dtype": "float32"}.items() <= (
        model["arrays"][-1].items()
    )
    assert [one["step"] for one in found["starts"]] == [0]
    assert sum(found["seconds"].values()) > 0
    assert [one["step"] for one in found["checkpoints"]] == [6, 9]
    assert all(one["problems"] == [] for one in found["checkpoints"])
    assert found["bytes"]["total"] >= found["bytes"]["entries"]["checkpoints"] > 0
    assert found["metrics"]["val"]["step"] == 9


def test_people_see_all_parts_of_it(lab: Path, capsys: pytest.CaptureFixture) -> None:
    code, said = inspect(capsys, lab / "runs" / "tiny", "--parameters")
    assert code == 0
    assert "finished: All requested epochs or steps are done." in said
    assert "641 parameters; params 2.50 KiB, opt_state" in said
    assert "trainer.callbacks[0].monitor" in said and "trainer.seed" not in said
    for title in ("checkpoints", "newest metrics", "settings that differ", "parameters"):
        assert f"\n{title}" in said
    assert "\x1b" not in said
    assert "trainer.seed" in inspect(capsys, lab / "runs" / "tiny", "--all")[1]


def test_one_checkpoint_is_described_alone(lab: Path, capsys: pytest.CaptureFixture) -> None:
    folder = lab / "runs" / "tiny" / "checkpoints" / "6"
    _, found = inspect(capsys, folder, "--json")
    assert found["path"] == str(folder) and found["run"] == str(lab / "runs" / "tiny")
    assert [one["step"] for one in found["checkpoints"]] == [6]
    assert found["progress"]["step"] == 6


def test_a_flipped_bit_is_found_where_every_byte_is_read(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    flip_bits(run / "checkpoints" / "9", count=1, seed=0)
    code, found = inspect(capsys, run, "--verify", "--json")
    assert code == 1
    assert [bool(one["problems"]) for one in found["checkpoints"]] == [False, True]


def test_a_file_of_another_size_is_found_at_once(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "checkpoints" / "9" / "meta.json").write_text("{}")
    code, said = inspect(capsys, run)
    assert code == 1
    assert "damaged: meta.json has 2 bytes" in " ".join(said.split())


def test_a_run_without_a_checkpoint_or_a_journal_is_described(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "journal.jsonl").unlink()
    (run / "experiment.json").unlink()
    code, found = inspect(capsys, run, "--json")
    assert (code, found["status"]["name"]) == (0, "finished")
    assert (found["checkpoints"], found["starts"], found["experiment"]) == ([], [], None)
    assert found["progress"]["step"] == 9 and found["model"]["parameters"] is None
    assert found["config"]["trainer"]["seed"] == 0
    assert inspect(capsys, run)[0] == 0


def test_records_of_the_black_box_are_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    box = run / "black_box" / "step_7"
    box.mkdir(parents=True)
    record = {"format": 1, "step": 7, "why": "error", "error": {"type": "E", "message": "m"}}
    (box / "record.json").write_text(json.dumps(record))
    assert "7: error E: m" in inspect(capsys, run)[1]
    assert inspect(capsys, run, "--json")[1]["records"] == [
        {"step": 7, "why": "error", "error": "E: m"}
    ]
    (box / "record.json").write_text("{")
    assert inspect(capsys, run, "--json")[1]["records"][0]["why"] == "damaged"


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "found neither metrics.jsonl nor checkpoints" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "gone")]) == 2
    assert "Found no folder" in capsys.readouterr().err

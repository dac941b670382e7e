"""Does ``xtrainer diff`` find in what two runs differ, and nothing else?"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xtrainer.cli.main import main


@pytest.fixture
def pair(lab: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Gives two copies of the run; of checkpoints only the first has any."""
    paths = [Path(shutil.copytree(lab / "runs" / "tiny", tmp_path / name)) for name in "ab"]
    return paths[0], paths[1]


def change(path: Path, **values: Any) -> None:
    """Changes values of a file of JSON by their dotted paths, with ``__`` for each dot."""
    data = json.loads(path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        node = data
        for parent in parents:
            node = node[parent]
        node[last] = value
    path.write_text(json.dumps(data))


def test_a_run_is_the_same_as_its_copy_wherever_that_lies(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    change(pair[1] / "config.json", trainer__logger__log_path="elsewhere")
    assert main(["diff", *map(str, pair)]) == 0
    assert "The same: settings, versions, code" in capsys.readouterr().out


def test_each_thing_that_differs_is_named(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    a, b = pair
    change(b / "config.json", optimizer__scheduler__lr=0.5, trainer__seed=3)
    change(b / "experiment.json", config__data__batch_size=8, config__extra=1)
    start, *lines = (b / "journal.jsonl").read_text().splitlines()
    facts = json.loads(start)
    facts |= {"git": "abc", "versions": {**facts["versions"], "jax": "0.1"}, "process_count": 2}
    (b / "journal.jsonl").write_text("\n".join([json.dumps(facts), *lines, ""]))
    rows = (b / "metrics.jsonl").read_text().splitlines()
    row = {"set": "test", "step": 9, "epoch": 3, "metrics": {"loss": 0.5, "time_s": 9.0}}
    (b / "metrics.jsonl").write_text("\n".join([*rows, json.dumps(row), ""]))
    assert main(["diff", str(a), str(b), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == {"a": str(a), "b": str(b)} and found["same"] is False
    assert found["settings"] == {
        "trainer.seed": {"a": 0, "b": 3},
        "optimizer.scheduler.lr": {"a": 0.01, "b": 0.5},
        "data.batch_size": {"a": 16, "b": 8},
        "extra": {"b": 1},
    }
    assert found["versions"]["jax"]["b"] == "0.1" and found["versions"]["code"]["b"] == "abc"
    assert found["environment"] == {"process_count": {"a": 1, "b": 2}}
    assert (found["steps"], found["best"]) == ({}, {})
    tested = json.loads(next(row for row in rows if '"test"' in row))["metrics"]["loss"]
    assert found["metrics"] == {"test/loss": {"a": tested, "b": 0.5, "difference": 0.5 - tested}}


def test_the_table_shows_both_values_and_the_difference(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    row: dict[str, Any] = {"set": "test", "step": 9, "epoch": 3}
    for number, folder in enumerate(pair):
        row["metrics"] = {"loss": 0.5 + number / 4}
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    assert main(["diff", *map(str, pair)]) == 1
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "test/loss 0.5 0.75 +0.25" in said
    assert said[0] == f"a {pair[0]} (finished)"
    assert said[-1] == "the same: settings, versions, environment, steps, best"


def test_one_that_is_no_run_is_told(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["diff", str(lab / "runs" / "tiny"), str(tmp_path)]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err

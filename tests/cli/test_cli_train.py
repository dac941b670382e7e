"""Does ``xtrainer train`` do what ``python FILE`` would, and end with the code of the run?"""

from pathlib import Path

import pytest
from experiment_zoo import SMALL, TINY, write_experiment

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.cli.main import main
from xtrainer.cli.record import read_record


def with_run(folder: Path, body: str) -> str:
    return write_experiment(folder, f"{SMALL}\n\ndef run(config):\n    {body}\n")


def test_a_file_without_run_is_trained_validated_and_tested(lab: Path) -> None:
    run = lab / "runs" / "tiny"
    assert list_steps(run / "checkpoints")[-1] == 9
    rows = [(row["set"], row["step"]) for row in xt.read_metrics(run)]
    assert [step for name, step in rows if name == "val"] == [3, 6, 9]
    assert ("test", 9) in rows


def test_the_settings_are_kept_with_the_run(lab: Path) -> None:
    record = read_record(lab / "runs" / "tiny")
    assert record is not None
    assert (record[0], record[1]["num_epochs"], record[1]["data"]["batch_size"]) == ("tiny", 3, 16)


def test_it_prints_the_test_and_where_the_run_is(lab: Path) -> None:
    said = (lab / "train.txt").read_text().splitlines()
    assert said[-1] == f"run folder: {lab / 'runs' / 'tiny'}"
    (row,) = (row for row in xt.read_metrics(lab / "runs" / "tiny") if row["set"] == "test")
    assert said[-2] == f"test loss: {row['metrics']['loss']!r}"


def test_its_own_run_is_given_the_config_with_the_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = with_run(tmp_path, "print('batch size', config.data.batch_size)")
    assert main(["train", path, "--config.data.batch_size=7"]) == 0
    assert capsys.readouterr().out == "batch size 7\n"


def test_the_exit_code_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = "from xtrainer.launch import exits; exits.note_end_of_run(config.num_epochs)"
    path = with_run(tmp_path, body)
    assert main(["train", path, "--config.num_epochs=3"]) == 3
    assert main(["train", path, "--config.num_epochs=0"]) == 0


def test_an_error_of_xtrainer_is_told_in_short_and_has_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = "from xtrainer.errors import NoUsableCheckpointError as E; raise E('All are damaged.')"
    assert main(["train", with_run(tmp_path, body)]) == 5
    assert capsys.readouterr().err == "xtrainer train: All are damaged.\n"


def test_every_mistake_is_told_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_experiment(tmp_path, TINY)
    wrong = ["--config.num_epoch=3", "--config.data.batch_size=many", "--config.trainer.seed=-1"]
    assert main(["train", path, *wrong]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("xtrainer train: 3 mistakes in the configuration:\n  - ")
    assert "There is no --config.num_epoch. Did you mean 'num_epochs'?" in said.err
    assert "--config.data.batch_size=many does not fit the config" in said.err
    assert "trainer.seed: found -1" in said.err
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL, "found no function run(config) and no make_loaders(data)"),
        (SMALL + "\n\ndef make_loaders(data):\n    return {'test': []}\n", "expected 'train'"),
    ],
)
def test_a_file_that_cannot_be_trained_is_told_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str
) -> None:
    assert main(["train", write_experiment(tmp_path, text)]) == 2
    assert message in capsys.readouterr().err

"""Does ``xtrainer drill`` say what a run survives, and find one that does not survive?"""

import io
import re
from pathlib import Path

import pytest
from experiment_zoo import SMALL, TRAINED, write_experiment
from rich.console import Console

from xtrainer.cli.drill import print_outcomes
from xtrainer.cli.drills import DRILLS, REFERENCE, Outcome, Stage, run_drills
from xtrainer.cli.main import main
from xtrainer.cli.runner import Ended, Runner
from xtrainer.testing import Journal

SEED = 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, Ended]:
    """Gives what starts the small experiment, and a run of it that nothing happens to."""
    folder = tmp_path_factory.mktemp("drill")
    runner = Runner(write_experiment(folder, TRAINED), [], folder / "runs")
    return runner, runner.complete(REFERENCE)


@pytest.mark.parametrize(
    ("name", "injected", "happened", "lost"),
    [
        (
            "disk-full",
            r"no space in save \d, from step \d+ on",
            [r"code 4 FAILED [\d.]+ s after", "code 0 FINISHED"],
            (2, 0),
        ),
        (
            "corrupt",
            r"SIGKILL in save \d, then 3 bits of the newest step flipped",
            [r"code -9 [\d.]+ s after", "code 0 FINISHED"],
            (6, 10_000),
        ),
        pytest.param(
            "kill9",
            r"SIGKILL in save \d \(\w+\), then after step \d+",
            [r"code -9 [\d.]+ s after", r"code -9 [\d.]+ s after", "code 0 FINISHED"],
            (6, 0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "nan",
            r"NaN in batch \d+",
            [r"code 3 NONFINITE [\d.]+ s after", "code 0 FINISHED"],
            (0, 0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "slow-save",
            r"4 saves take [\d.]+ s longer, every [\d.]+ s",
            [r"code 0 FINISHED [\d.]+ s after"],
            (0, 0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "stall-loader",
            r"batch \d+ comes [\d.]+ s late",
            [
                r"code 0 FINISHED [\d.]+ s after",
                r"data_wait [\d.]+ s, of [\d.]+ s not hidden by .*",
            ],
            (0, 0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "preempt",
            r"SIGTERM after step \d+",
            [r"code 143 PREEMPTED [\d.]+ s after", "code 0 FINISHED"],
            (0, 0),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_exact_run_survives(
    undisturbed: tuple[Runner, Ended],
    name: str,
    injected: str,
    happened: list[str],
    lost: tuple[int, int],
) -> None:
    found = DRILLS[name](Stage(*undisturbed, name, SEED))
    assert found.problems == []
    assert re.fullmatch(injected, found.injected)
    assert len(found.happened) == len(happened)
    for text, pattern in zip(found.happened, happened, strict=True):
        assert re.fullmatch(pattern, text)
    assert found.lost_steps == lost[0]  # of the seed
    assert found.lost_bytes >= lost[1]


def test_a_run_that_reads_other_data_does_not_survive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path, keep = write_experiment(tmp_path, TRAINED), tmp_path / "runs"
    arguments = ["--slow-save", "--seed", "3", "--keep", str(keep), "--save-every", "3"]
    assert main(["drill", path, *arguments, "--config.data.random=True"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"│ slow-save +│ 4 saves take .*│ NOT SURVIVED │", said)
    for what in ("state: step 1, ", "data: batch 1 of pass 1: found", "rows: the train row"):
        assert f"- slow-save: {what}" in said
    assert "Seed 3; 1 injections, 2 processes, " in said
    assert {"whole", "slow-save"} <= {path.name for path in keep.iterdir()}


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (SMALL, [], r"found no function run\(config\)"),
        (TRAINED, ["--save-every", "0"], "--save-every: found 0, expected a number >= 1"),
        (TRAINED, ["--keep", "."], "is not empty"),
        (TRAINED, ["--kill-9"], "unrecognized|no option of drill"),
    ],
)
def test_what_cannot_be_followed_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    arguments: list[str],
    message: str,
) -> None:
    path = write_experiment(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    assert main(["drill", path, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


# Without a process.


class Played(Runner):
    """Gives processes that have ended as they are told to have."""

    def __init__(self, folder: Path, *ends: Ended) -> None:
        super().__init__("experiment.py", [], folder)
        self.ends = list(ends)

    def start(self, name: str, *_: object) -> Ended:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / name / "metrics.jsonl").touch()
        return self.ends.pop(0)

    def describe(self, ended: Ended) -> str:
        return f"a run ended with code {ended.code}"


def noted(last: int = 8, start: int = 0, stop: str = "FINISHED", **more: object) -> Journal:
    """Returns the journal of a run with a step each second, which saves every two."""
    steps = {step: {"w": f"w{step}"} for step in range(start + 1, last + 1)}
    saves = {step: float(step) for step in steps if step % 2 == 0}
    fields = {
        "batches": {(0, step): step for step in steps},
        "end": {"w": "w"} if stop == "FINISHED" else {},
        "times": {step: float(step) for step in steps},
        "saves": saves,
        "saved": saves,
        "stop": stop,
        "fault_at": 5.0,
        "accounts": {"data_wait": 0.0},
    }
    return Journal(start, steps, **{**fields, **more})  # type: ignore[arg-type]


WHOLE = Ended(noted(fault_at=None), 0, 8.0)


def played(tmp_path: Path, name: str, *ends: Ended) -> Outcome:
    (outcome,) = run_drills(Played(tmp_path, WHOLE, *ends), [name], SEED)
    return outcome


def test_a_preempted_run_must_save_where_it_stops_and_end_in_time(tmp_path: Path) -> None:
    stopped = noted(4, stop="PREEMPTED")
    rest = Ended(noted(start=4, fault_at=None), 0, 20.0)
    assert played(tmp_path / "good", "preempt", Ended(stopped, 143, 6.0), rest).problems == []
    found = played(tmp_path / "code", "preempt", Ended(stopped, -15, 6.0), rest)
    assert found.problems == ["it ended with code -15, expected 143"]
    found = played(tmp_path / "late", "preempt", Ended(stopped, 143, 15.5), rest)
    assert found.problems == ["it took 10.5 s to end, expected 10.0 s"]
    rest = Ended(noted(start=2, fault_at=None), 0, 20.0)
    found = played(tmp_path / "lost", "preempt", Ended(stopped, 143, 6.0), rest)
    assert found.problems == ["it went on from step 2, expected 4"]
    assert found.lost_steps == 2


def test_a_run_that_goes_on_from_too_far_back_is_found(tmp_path: Path) -> None:
    first, second = (Ended(noted(last, stop=""), -9, 6.0) for last in (4, 7))
    rest = Ended(noted(start=4, fault_at=None), 0, 20.0)
    found = played(tmp_path, "kill9", first, second, rest)
    assert found.problems == [
        "it went on from step 0, although step 4 had been saved",
        "it went on from step 4, although step 6 had been saved",
    ]
    assert found.lost_steps == 4 + 3


def test_a_stall_must_be_seen_in_the_account_of_waiting(tmp_path: Path) -> None:
    good = Ended(noted(accounts={"data_wait": 7.5}), 0, 20.0)
    assert played(tmp_path / "good", "stall-loader", good).problems == []
    found = played(tmp_path / "bad", "stall-loader", Ended(noted(), 0, 20.0))
    (problem,) = found.problems
    said = r"the ledger counts 0.0 s of data_wait, and 0.0 s without the stall, expected [6-9].0 s"
    assert re.match(said, problem)
    hidden = Ended(noted(fault_at=-9.0), 0, 20.0)  # read ahead, long before it was needed
    assert played(tmp_path / "hidden", "stall-loader", hidden).problems == []


def test_a_step_that_waits_too_long_for_a_slow_save_is_found(tmp_path: Path) -> None:
    times = {step: float(step) + (60.0 if step > 4 else 0.0) for step in range(1, 9)}
    saved = {step: float(step) for step in (2, 4, 8)}
    found = played(tmp_path, "slow-save", Ended(noted(times=times, saved=saved), 0, 99.0))
    assert found.problems == [
        "a step took 61.0 s, expected 16.0 s",
        "the steps [6] were not saved",
    ]


def test_a_run_that_takes_nan_for_a_number_is_found(tmp_path: Path) -> None:
    found = played(tmp_path, "nan", Ended(noted(), 0, 9.0))
    said = "expected NONFINITE and code 3, found FINISHED"
    assert found.problems == [
        f"{said} and a run ended with code 0",
        "it stopped at step None, expected the last good one, 8",
    ]


def test_a_fault_that_has_not_come_is_told(tmp_path: Path) -> None:
    found = played(tmp_path, "stall-loader", Ended(noted(fault_at=None), 0, 9.0))
    assert "the fault has never come" in found.problems


@pytest.mark.parametrize(("name", "count"), [("kill9", 1), ("disk-full", 2), ("corrupt", 3)])
def test_a_run_that_saves_too_seldom_is_not_tried(tmp_path: Path, name: str, count: int) -> None:
    saves = {step: float(step) for step in range(1, count)}
    whole = Ended(noted(saves=saves, saved=saves), 0, 8.0)
    (found,) = run_drills(Played(tmp_path, whole), [name], SEED)
    assert found.problems == [
        f"not tried: found a run that saves at the steps {list(saves)}, expected at least {count} "
        "saves. Give --save-every."
    ]


def test_the_table_shows_what_was_survived_and_what_was_not() -> None:
    said = io.StringIO()
    good = Outcome("nan", "NaN in batch 3", ["code 3 NONFINITE 0.5 s after", "code 0 FINISHED"])
    bad = Outcome("kill9", "SIGKILL after step 7", ["code 1"], 4, 2048, ["state: step 3: found a"])
    print_outcomes(Console(file=said, width=120), [good, bad])
    lines = [re.sub(r"\s+", " ", line) for line in said.getvalue().splitlines()]
    first = "│ nan │ NaN in batch 3 │ code 3 NONFINITE 0.5 s after │ 0 steps │ the same end │"
    assert first in lines
    second = "│ kill9 │ SIGKILL after step 7 │ code 1 │ 4 steps, 2.00 KiB │ NOT SURVIVED │"
    assert second in lines
    assert lines[-1] == "- kill9: state: step 3: found a"

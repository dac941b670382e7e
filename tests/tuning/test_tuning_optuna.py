"""Does a study count its trials right, whoever runs them and however often it is begun?"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import probes
import pytest
from optuna.trial import TrialState

import xtrainer as xt
from xtrainer.errors import MetricError
from xtrainer.tuning import run_study, watch_trial
from xtrainer.tuning.optuna import JOURNAL_FILE

ROOT = Path(__file__).resolve().parents[2]
COMPLETE, PRUNED, FAIL, RUNNING = (
    TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING,
)  # fmt: skip


def parabola(trial: Any, folder: Path) -> float:
    return (trial.suggest_float("x", -1.0, 1.0) - 0.25) ** 2 + trial.suggest_int("n", 0, 3)


def states(study: Any) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def test_a_study_that_is_gone_on_with_is_the_one_of_a_single_start(tmp_path: Path) -> None:
    folders: list[Path] = []

    def noting(trial: Any, folder: Path) -> float:
        folders.append(folder)
        return parabola(trial, folder)

    first = run_study(noting, tmp_path / "a", 9, seed=3)
    again = run_study(noting, tmp_path / "a", 14, seed=3)
    whole = run_study(parabola, tmp_path / "b", 14, seed=3)
    assert [path.name for path in folders] == [f"trial_{number}" for number in range(14)]
    assert [t.params for t in again.trials] == [t.params for t in whole.trials]
    assert [t.value for t in again.trials] == [t.value for t in whole.trials]
    assert again.best_value == min(t.value for t in again.trials) <= first.best_value
    assert len({t.params["x"] for t in again.trials}) == 14
    other = run_study(parabola, tmp_path / "c", 2, seed=4)
    assert other.trials[1].params == whole.trials[2].params  # seeds count from one another


def test_a_study_that_has_all_its_trials_runs_none(tmp_path: Path) -> None:
    run_study(parabola, tmp_path, 3)
    study = run_study(lambda trial, folder: pytest.fail("one more"), tmp_path, 3)
    assert states(study) == [COMPLETE] * 3


def test_what_is_broken_off_is_gone_on_with_under_its_number_and_values(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    def broken(trial: Any, folder: Path) -> float:
        seen.append((trial.number, trial.suggest_float("x", -1.0, 1.0)))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return parabola(trial, folder)

    with pytest.raises(KeyboardInterrupt):
        run_study(broken, tmp_path, 5)
    study = run_study(broken, tmp_path, 5)
    assert [number for number, _ in seen] == [0, 1, 2, 2, 3, 4]
    assert seen[2] == seen[3]
    assert states(study) == [COMPLETE] * 5


def test_an_error_fails_the_trial_and_another_takes_its_place(tmp_path: Path) -> None:
    def failing(trial: Any, folder: Path) -> float:
        if trial.number == 1:
            raise OSError("the disk is gone")
        return parabola(trial, folder)

    with pytest.raises(OSError, match="the disk is gone"):
        run_study(failing, tmp_path, 3)
    assert states(run_study(failing, tmp_path, 3)) == [COMPLETE, FAIL, COMPLETE, COMPLETE]


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_value_that_is_not_finite_is_pruned_and_never_the_best(
    tmp_path: Path, direction: Any
) -> None:
    values = [math.nan, 1.0, -math.inf, 2.0, math.inf]
    study = run_study(lambda trial, _: values[trial.number], tmp_path, 5, direction=direction)
    assert states(study) == [PRUNED, COMPLETE, PRUNED, COMPLETE, PRUNED]
    assert study.best_value == {"min": 1.0, "max": 2.0}[direction]


def test_a_torn_line_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    run_study(parabola, tmp_path, 2)
    with (tmp_path / JOURNAL_FILE).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_')  # as a kill within a write leaves it
    assert states(run_study(parabola, tmp_path, 4)) == [COMPLETE] * 4
    assert states(run_study(parabola, tmp_path, 5)) == [COMPLETE] * 5


def test_a_database_can_hold_the_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    run_study(parabola, tmp_path / "runs", 2, storage=storage, study_name="one")
    study = run_study(parabola, tmp_path / "runs", 3, storage=storage, study_name="one")
    assert states(study) == [COMPLETE] * 3
    assert not (tmp_path / "runs" / JOURNAL_FILE).exists()


def test_arguments_and_studies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(xt.ConfigError, match="num_trials=0"):
        run_study(parabola, tmp_path, 0)
    with pytest.raises(xt.ConfigError, match="direction='minimize'"):
        run_study(parabola, tmp_path, 1, direction="minimize")  # type: ignore[arg-type]
    with pytest.raises(xt.ConfigError, match="found no study 'study'"):
        run_study(parabola, tmp_path, 1, resume="must")
    run_study(parabola, tmp_path, 1, resume="never")
    with pytest.raises(xt.ConfigError, match="found a study 'study'"):
        run_study(parabola, tmp_path, 2, resume="never")
    with pytest.raises(xt.ConfigError, match="expected that of the study 'study' in .*'min'"):
        run_study(parabola, tmp_path, 2, direction="max")


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from xtrainer.tuning import run_study

folder, how = Path(sys.argv[1]), sys.argv[2]

def objective(trial, place):
    x = trial.suggest_float("x", 0.0, 1.0)
    with (folder / "done").open("a") as done:
        done.write(f"{trial.number} {x!r} {how}\\n")
    if how == "killed" and trial.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / how).touch()
    while how != "killed" and not all((folder / one).exists() for one in ("here", "there")):
        time.sleep(0.01)
    return x

study = run_study(objective, folder / "study", int(sys.argv[3]))
"""


def program(folder: Path, how: str, trials: int) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(folder), how, str(trials)]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)


def done(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "done").read_text().splitlines()]


def test_a_trial_of_a_killed_program_is_gone_on_with_and_two_programs_share_the_rest(
    tmp_path: Path,
) -> None:
    with program(tmp_path, "killed", 5) as killed:
        _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, errors
    assert [number for number, *_ in done(tmp_path)] == ["0", "1", "2"]

    def objective(trial: Any, folder: Path) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        with (tmp_path / "done").open("a") as lines:
            lines.write(f"{trial.number} {x!r} here\n")
        (tmp_path / "here").touch()
        deadline = time.monotonic() + 120
        while not (tmp_path / "there").exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # so that both have a trial at the same time
        return x

    with program(tmp_path, "there", 9) as other:
        study = run_study(objective, tmp_path / "study", 9)
        _, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert states(run_study(parabola, tmp_path / "study", 9)) == [COMPLETE] * 9
    rows = done(tmp_path)
    numbers = [int(number) for number, *_ in rows]
    assert sorted(numbers) == [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]
    first, second = (x for number, x, _ in rows if number == "2")
    assert first == second == repr(study.trials[2].params["x"])
    assert {who for *_, who in rows} == {"killed", "here", "there"}


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a small trainer that is compiled once."""
    return probes.Repeatable(probes.traced(model={"width": 4}))


def losses(stage: probes.Repeatable, first: int) -> dict[int, float]:
    """Returns the losses of the validations of a run on other batches, by step."""
    trainer = stage.begin(check_val_every_n_steps=2)
    trainer.train_model(probes.numbered(4, first=first), probes.numbered(1), num_train_steps=8)
    return {step: row["loss"] for step, row in trainer.logger.rows("val")}


def pruner() -> Any:
    return optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2)


def by_hand(runs: list[dict[int, float]]) -> list[tuple[TrialState, int]]:
    """Returns the state of each trial and the step of its last report, as Optuna's pages show."""
    study = optuna.create_study(direction="minimize", pruner=pruner())
    for run in runs:
        trial = study.ask()
        for step, loss in run.items():
            trial.report(loss, step)
            if trial.should_prune():
                study.tell(trial, state=PRUNED)
                break
        else:
            study.tell(trial, min(run.values()))
    return [(trial.state, max(trial.intermediate_values)) for trial in study.trials]


def test_a_trial_is_pruned_at_the_validation_at_which_a_pruner_run_by_hand_would(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    firsts = [1, 20, 40, 60]
    runs = [losses(stage, first) for first in firsts]
    steps: list[int] = []

    def objective(trial: Any, folder: Path) -> float:
        trainer = stage.begin(check_val_every_n_steps=2)
        watch = watch_trial(trainer, trial)
        data = probes.numbered(4, first=firsts[trial.number])
        try:
            trainer.train_model(data, probes.numbered(1), num_train_steps=8)
            return watch.result()
        finally:
            steps.append(trainer.global_step)
            assert ("is pruned" in trainer.stop_detail) == (trainer.stop_reason.name == "REQUESTED")

    study = run_study(objective, tmp_path, 4, pruner=pruner())
    expected = by_hand(runs)
    assert [(t.state, max(t.intermediate_values)) for t in study.trials] == expected
    assert steps == [step for _, step in expected]
    assert {state for state, _ in expected} == {COMPLETE, PRUNED}
    for trial, run in zip(study.trials, runs, strict=True):
        assert trial.intermediate_values == {s: run[s] for s in trial.intermediate_values}


def test_a_run_that_was_asked_to_end_goes_on_from_its_checkpoint(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    runs: list[tuple[int, int]] = []

    def study_of(folder: Path, stop_at: int | None) -> Any:
        def stop(trainer: Any, *args: Any) -> None:
            if trainer.global_step == stop_at:
                trainer.request_stop(xt.StopReason.PREEMPTED)

        def objective(trial: Any, place: Path) -> float:
            def note(trainer: Any) -> None:
                runs.append((trial.number, trainer.global_step))

            began = ("on_training_start", note)
            saving = xt.ModelCheckpointConfig(every_n_steps=2)
            made = [saving, probes.acting("on_training_step", stop), probes.acting(*began)]
            trainer = stage.begin(*made, folder=place, check_val_every_n_steps=2)
            watch = watch_trial(trainer, trial)
            data = probes.numbered(4, first=1 + 20 * trial.number)
            trainer.train_model(data, probes.numbered(1), num_train_steps=8)
            return watch.result()

        return run_study(objective, folder, 2, pruner=optuna.pruners.NopPruner())

    broken = study_of(tmp_path / "a", 5)
    assert (states(broken), runs) == ([RUNNING], [(0, 0)])
    resumed = study_of(tmp_path / "a", None)
    assert runs[1:] == [(0, 5), (1, 0)]  # the first goes on where it had stopped
    whole = study_of(tmp_path / "b", None)
    assert states(resumed) == states(whole) == [COMPLETE] * 2
    for one, other in zip(resumed.trials, whole.trials, strict=True):
        assert one.intermediate_values == other.intermediate_values
        assert sorted(one.intermediate_values) == [2, 4, 6, 8]
        assert one.value == other.value == min(one.intermediate_values.values())


def test_a_trial_that_was_pruned_when_its_program_was_killed_takes_no_more_steps(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    ends: list[int] = []

    class Always(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return 4 in trial.intermediate_values

    def objective(trial: Any, folder: Path) -> float:
        saving = xt.ModelCheckpointConfig(every_n_steps=2)
        trainer = stage.begin(saving, folder=folder, check_val_every_n_steps=2)
        watch = watch_trial(trainer, trial)
        trainer.train_model(probes.numbered(4), probes.numbered(1), num_train_steps=8)
        ends.append(trainer.global_step)
        if len(ends) == 1:
            raise KeyboardInterrupt  # before the study is told
        return watch.result()

    with pytest.raises(KeyboardInterrupt):
        run_study(objective, tmp_path, 1, pruner=Always())
    study = run_study(objective, tmp_path, 1, pruner=Always())
    assert (ends, states(study)) == ([4, 4], [PRUNED])
    assert sorted(study.trials[0].intermediate_values) == [2, 4]


def test_training_that_is_not_finite_is_pruned(stage: probes.Repeatable, tmp_path: Path) -> None:
    def objective(trial: Any, folder: Path) -> float:
        trainer = stage.begin(check_val_every_n_steps=2)
        watch = watch_trial(trainer, trial)
        bad = [3] if trial.number else []
        validation = probes.numbered(1, bad=[1] if trial.number == 2 else [])
        trainer.train_model(probes.numbered(4, bad=bad if trial.number == 1 else []), validation,
                            num_train_steps=4)  # fmt: skip
        return watch.result()

    study = run_study(objective, tmp_path, 3, pruner=optuna.pruners.NopPruner())
    assert states(study) == [COMPLETE, PRUNED, PRUNED]
    assert study.best_trial.number == 0
    assert study.trials[2].intermediate_values == {}


def test_a_metric_that_is_not_there_and_a_run_without_validation_are_told(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    def objective(trial: Any, folder: Path) -> float:
        trainer = stage.begin()
        watch = watch_trial(trainer, trial, "los" if trial.number == 0 else "loss")
        trainer.train_model(probes.numbered(1), probes.numbered(1) if trial.number == 0 else None,
                            num_epochs=1)  # fmt: skip
        return watch.result()

    with pytest.raises(MetricError, match="Did you mean 'loss'"):
        run_study(objective, tmp_path, 1)
    with pytest.raises(MetricError, match="no validation of trial 1"):
        run_study(objective, tmp_path, 1)

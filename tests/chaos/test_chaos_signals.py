"""Does a run that is asked to end do so soon, with its code, and lose nothing? Real processes."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chaos_zoo
import pytest
import signal_zoo
from job import Job

SEED = 1616
END_S = 10.0
"""From a signal to the end of the process, with the save, which is small here."""
ALONE = Job(steps=110)
PAIR = Job(steps=110, accumulate=2, batch_norm=False)
SHORT = (
    "SIGTERM time:0.15",
    "SIGINT on_validation_epoch_start:2",
    "SIGTERM arrays:2",
    "SIGHUP on_training_start:1",
    "SIGUSR1 on_training_step:9",
)
SHORT_PAIR = ("1/SIGTERM time:0.2", "01/SIGINT on_validation_epoch_start:1")
HOOKS = (
    *("on_training_start", "on_training_epoch_start", "on_training_step", "on_training_log"),
    *("on_validation_epoch_start", "on_validation_epoch_end", "on_epoch_logged"),
    *("begun", "meta", "arrays", "synced", "committed", "removing"),
)


def plans(draw: random.Random, count: int) -> list[str]:
    """Returns signals at random times and at moments of the loop and of saves."""
    names = ["SIGTERM", "SIGTERM", "SIGINT", "SIGUSR1"]
    found = []
    for index in range(count):
        moment = f"time:{draw.uniform(0, 0.6):.3f}"
        if index % 2:
            moment = f"{draw.choice(HOOKS)}:1"
        found.append(f"{draw.choice(names)} {moment}")
    return found


def assert_all_well(campaign: signal_zoo.SignalCampaign, plans: Sequence[str]) -> str:
    report = campaign.run(plans)
    seconds = sorted(campaign.seconds)
    table = f"{report.table()}\nseconds to the end: {[round(s, 2) for s in seconds]}"
    assert report.problems == [], table
    assert [kill.lost for kill in report.kills] == [0] * len(report.kills), table
    assert len(seconds) >= len(plans) and seconds[-1] < END_S, table
    assert chaos_zoo.left_running(campaign.folder) == []
    return table


def test_a_run_that_is_asked_to_end_loses_nothing(tmp_path: Path) -> None:
    assert_all_well(signal_zoo.SignalCampaign(tmp_path, ALONE, SEED), SHORT)


@pytest.mark.processes
def test_all_processes_end_at_one_step_when_one_is_asked(tmp_path: Path) -> None:
    assert_all_well(signal_zoo.SignalPairCampaign(tmp_path, PAIR, SEED), SHORT_PAIR)


@pytest.mark.chaos
def test_signals_at_random_moments(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    found = plans(random.Random(SEED), 24)
    table = assert_all_well(signal_zoo.SignalCampaign(tmp_path, ALONE, SEED), found)
    print(table)
    record_property("table", table)


@pytest.mark.chaos
@pytest.mark.processes
def test_signals_at_random_moments_to_either_or_both_of_two_processes(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    draw = random.Random(SEED)
    found = [f"{draw.choice(['0', '1', '01'])}/{plan}" for plan in plans(draw, 20)]
    # Of a save the main process does the most; the other may not come to the moment.
    is_of_save = lambda plan: "time:" not in plan and "on_" not in plan  # noqa: E731
    found = [f"0/{p.partition('/')[2]}" if is_of_save(p) else p for p in found]
    table = assert_all_well(signal_zoo.SignalPairCampaign(tmp_path, PAIR, SEED), found)
    print(table)
    record_property("table", table)


PROGRAM = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
import probes, zoo
import xtrainer as xt

{before}
trainer = probes.traced(
    logger=zoo.file_logger({folder!r}), callbacks=[xt.ModelCheckpointConfig(every_n_epochs=99)]
)

def act(trainer, *args):
    print("step", flush=True)
    time.sleep({pause_s})

trainer.callbacks.insert(0, probes.acting("on_training_step", act)(trainer))
trainer.train_model(probes.numbered(4), num_train_steps=200)
print("after", trainer.stop_reason.name, trainer.global_step, flush=True)
"""


def started(folder: Path, before: str = "", pause_s: float = 0.02) -> subprocess.Popen[str]:
    """Returns a program that has taken its first step."""
    program = PROGRAM.format(
        paths=[str(chaos_zoo.TESTS.parent), str(chaos_zoo.TESTS)],
        folder=str(folder / "run"),
        before=before,
        pause_s=pause_s,
    )
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=chaos_zoo.environ("", 1, folder), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "step\n":
        assert line, process.communicate()[1]
    return process


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_plain_program_ends_with_the_code_of_the_signal(
    tmp_path: Path, name: str, code: int
) -> None:
    process = started(tmp_path)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "after " in out and f"{name} came. Training ends after this step" in err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_leaves_at_once_and_nothing_is_damaged(
    tmp_path: Path, name: str, code: int
) -> None:
    process = started(tmp_path, pause_s=30.0)
    for _ in range(2):
        process.send_signal(signal.Signals[name])
        time.sleep(0.5)
    begun = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 1.5
    assert process.returncode == code, err
    assert f"{name} came again" in err
    again = started(tmp_path)
    again.send_signal(signal.SIGTERM)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 143 and "PREEMPTED" in out, err


def test_the_programs_own_handler_is_called_besides(tmp_path: Path) -> None:
    before = "signal.signal(signal.SIGTERM, lambda *_: print('own', flush=True))"
    process = started(tmp_path, before)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out.splitlines().count("own") == 1 and "PREEMPTED" in out


def test_a_kill_that_follows_the_signal_leaves_the_newest_save(tmp_path: Path) -> None:
    process = started(tmp_path, pause_s=30.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=20)
    assert process.returncode == chaos_zoo.KILLED
    again = started(tmp_path)
    again.send_signal(signal.SIGTERM)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 143 and "PREEMPTED" in out, err


def test_a_stop_and_a_continuation_change_nothing(tmp_path: Path) -> None:
    process = started(tmp_path)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "after FINISHED 200" in out


def test_what_was_started_to_ignore_interrupts_ignores_them(tmp_path: Path) -> None:
    process = started(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "after FINISHED 200" in out

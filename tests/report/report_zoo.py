"""Folders of runs, made by hand: what a report is about, without a run."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from xtrainer.trainer import JournalLine
from xtrainer.trainer.journal_lines import JOURNAL_FILE, encode

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
START: dict[str, Any] = {
    "host": "elsewhere",
    "pid": 7,
    "process_count": 1,
    "devices": {"kind": "NVIDIA A100-SXM4-80GB", "count": 2},
    "mesh": {"dp": 2},
    "versions": {"jax": "0.10.0"},
    "git": "0123abc",
    "numerics": {"jax_enable_x64": False},
    "parameters": 67,
    "flops_per_step": 3.12e14,
    "total_steps": 40,
    "online": False,
}
STOP = {"reason": "FINISHED", "detail": "", "exit_code": 0}
SAVED = {"took_s": 0.5, "bytes": 2048, "folder": "checkpoints", "problem": None}


def line(
    kind: str, at_s: float, at_step: int, facts: Any = None, /, **seconds: float
) -> JournalLine:
    """Returns a line that was written so many seconds after the first start."""
    return JournalLine(kind, BEGAN + timedelta(seconds=at_s), at_step, dict(seconds), facts or {})


KILLED = [
    line("start", 0, 0, START, init=2.0),
    line("first_step", 4, 1, init=2.0, compile=3.0, step=1.0),
    line("checkpoint", 14, 10, SAVED, init=2.0, compile=3.0, step=10.0, checkpoint=1.0),
    line("ledger", 24, 20, init=2.0, compile=3.0, step=20.0, checkpoint=1.0),
    line("start", 100, 10, START, init=2.0, restore=1.0),
    line("checkpoint", 120, 30, SAVED, init=2.0, restore=1.0, step=20.0),
    line("stop", 134, 40, STOP, init=2.0, restore=1.0, step=30.0, idle=1.0),
]
"""A run that was killed after step 20, has gone on from step 10, and has ended."""


def write_journal(folder: Path, lines: list[JournalLine]) -> None:
    """Writes a journal."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOURNAL_FILE).write_text("".join(map(encode, lines)))


def write_rows(
    folder: Path, rows: list[tuple[str, int, dict[str, float]]], name: str = "metrics.jsonl"
) -> None:
    """Adds rows of a set, a step and metrics, as the second start of ``KILLED`` would."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "a") as file:
        for mode, step, metrics in rows:
            time = BEGAN + timedelta(seconds=103 + 0.7 * min(step, 40))
            row = {"set": mode, "step": step, "epoch": 1, "time": time.isoformat()}
            file.write(json.dumps({**row, "metrics": metrics}) + "\n")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes a config."""
    (folder / "config.json").write_text(json.dumps(config))


ROWS = [("train", step, {"loss_mean": 4.0 / step, "grad_norm": 1.0}) for step in range(1, 41)] + [
    ("val", step, {"loss": 5.0 / step, "accuracy": step / 40, "time_s": 0.1}) for step in (20, 40)
]


def make_run(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """Makes the folder of a run that was killed once, and returns it."""
    write_journal(folder, KILLED)
    write_rows(folder, ROWS)
    write_config(folder, config or {"trainer": {"seed": 0}, "model": {"width": 8}})
    return folder

"""What is there to be said of a run? All of it as one document, for ``xtrainer inspect``."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtrainer.checkpoint.items import float_to_json
from xtrainer.cli.record import read_record
from xtrainer.cli.run_folder import (
    CheckpointFacts,
    best_values,
    checkpoints_of,
    configs_of,
    disk_use,
    iso,
    newest_rows,
    read_checkpoint,
    read_lines,
    run_and_step,
    status_of,
)
from xtrainer.trainer.box_files import RecordError, read_records
from xtrainer.trainer.journal_lines import JournalLine

_OF_START = ("host", "process_count", "devices", "mesh", "versions", "git", "numerics")
_OTHER_BITS = {"bool": 8, "key<rbg>": 128, "key<urbg>": 128}
_STATE_PARTS = ("params", "mutable_variables", "opt_state")


def describe(folder: Path, verify: bool = False, all_arrays: bool = True) -> dict[str, Any]:
    """Returns what a run folder, or one checkpoint, says.

    Args:
        folder: Of the run, or of one of its checkpoints, which alone is described then.
        verify: Whether every byte of the checkpoints is read.
        all_arrays: Whether each array of the model is listed.

    Returns:
        JSON, whose keys ``xtrainer inspect --help`` names.

    Raises:
        UsageError: If it is neither.
    """
    root, step_folder = run_and_step(folder)
    if step_folder is None:
        checkpoints = checkpoints_of(root, verify)
    else:
        checkpoints = [read_checkpoint(step_folder, verify)]
    lines, rows = read_lines(root), newest_rows(root)
    meta = next((one.meta for one in reversed(checkpoints) if one.meta), {})
    best = best_values(checkpoints)
    kept = read_record(root)
    status = status_of(root, lines)
    described: dict[str, Any] = {
        "path": str(step_folder or root),
        "run": str(root),
        "status": {
            "name": status.name,
            "reason": status.reason,
            "exit_code": status.exit_code,
        },
        "progress": _progress(meta, lines, rows, step_folder),
        "best": [
            {"metric": name, "value": float_to_json(value), "step": step}
            for name, (value, step) in best.items()
        ],
        "metrics": {
            name: {
                "step": row["step"],
                "epoch": row.get("epoch"),
                "metrics": {key: float_to_json(value) for key, value in row["metrics"].items()},
            }
            for name, row in rows.items()
        },
        "checkpoints": [_checkpoint(one) for one in checkpoints],
        "starts": [_start(line) for line in lines if line.kind == "start"],
        "seconds": _seconds(meta, lines),
        "environment": _environment(meta, lines),
        "model": _model(meta, all_arrays),
        "bytes": _sizes(step_folder or root),
        "records": _records(root),
        "experiment": None if kept is None else kept[0],
        "config": settings_of(root, meta),
    }
    return described


def settings_of(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a run: its configs, and what else its experiment was given.

    Args:
        folder: Of the run.
        meta: Of a checkpoint of it, where there is no file.
    """
    kept = read_record(folder)
    configs = configs_of(folder, meta)
    return configs | {k: v for k, v in (kept[1] if kept else {}).items() if k not in configs}


def _progress(
    meta: Mapping[str, Any], lines: list[JournalLine], rows: dict[str, Any], one: Path | None
) -> dict[str, Any]:
    """Returns steps and the like: as the newest checkpoint says, and the newest step there was."""
    saved = meta.get("progress", {})
    steps, epochs = [saved.get("step")], [saved.get("epochs_done")]
    if one is None:
        steps += [row["step"] for row in rows.values()] + [line.step for line in lines[-1:]]
        epochs += [row.get("epoch") for row in rows.values()]
    newest = [max((n for n in found if type(n) is int), default=None) for found in (steps, epochs)]
    others = {name: saved.get(name) for name in ("examples", "skipped")}
    return {"step": newest[0], "epoch": newest[1], **others}


def _checkpoint(found: CheckpointFacts) -> dict[str, Any]:
    return {
        "step": found.step,
        "path": str(found.folder),
        "saved": iso(found.saved_at),
        "bytes": found.num_bytes,
        "metric": float_to_json(found.metric),
        "problems": found.problems,
    }


def _start(line: JournalLine) -> dict[str, Any]:
    return {
        "time": line.time.isoformat(timespec="seconds"),
        "step": line.step,
        **{name: line.facts[name] for name in ("host", "pid", "process_count", "devices")},
    }


def _seconds(meta: Mapping[str, Any], lines: list[JournalLine]) -> dict[str, float]:
    """Returns where the time went, over all starts."""
    total: dict[str, float] = {}
    for index, line in enumerate(lines):
        # Seconds are those since the start before.
        if line is lines[-1] or lines[index + 1].kind == "start":
            for name, seconds in line.seconds.items():
                total[name] = total.get(name, 0.0) + seconds
    saved = meta.get("ledger", {})
    return total or {n: float(s) for n, s in saved.items() if n != "steps_before"}


def _environment(meta: Mapping[str, Any], lines: list[JournalLine]) -> dict[str, Any]:
    newest = next((line.facts for line in reversed(lines) if line.kind == "start"), meta)
    return {name: newest.get(name) for name in _OF_START}


def _model(meta: Mapping[str, Any], all_arrays: bool) -> dict[str, Any]:
    leaves = {
        path: {**leaf, "elements": math.prod(leaf["shape"]), "bytes": _leaf_bytes(leaf)}
        for path, leaf in meta.get("leaves", {}).items()
    }
    params = {path: leaf for path, leaf in leaves.items() if path.startswith("params/")}
    parts = {
        part: sum(leaf["bytes"] for path, leaf in leaves.items() if path.split("/")[0] == part)
        for part in _STATE_PARTS
    }
    model = {
        "parameters": sum(leaf["elements"] for leaf in params.values()) if leaves else None,
        "bytes": {part: size for part, size in parts.items() if size},
    }
    if all_arrays:
        inside = {path.removeprefix("params/"): leaf for path, leaf in params.items()}
        model["arrays"] = [{"path": path, **leaf} for path, leaf in inside.items()]
    return model


def _leaf_bytes(leaf: Mapping[str, Any]) -> int:
    """Returns the bytes of an array, by the bits in its type's name."""
    found = re.match(r"[a-z]+(\d+)", leaf["dtype"])
    bits = int(found[1]) if found else _OTHER_BITS.get(leaf["dtype"], 64)
    return math.ceil(math.prod(leaf["shape"]) * bits / 8)


def _sizes(folder: Path) -> dict[str, Any]:
    """Returns the bytes of all files, and of each entry of the folder."""
    total, changed = disk_use(folder)
    inside = {path.name: _size(path) for path in sorted(folder.iterdir())}
    return {"total": total, "changed": iso(changed), "entries": inside}


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return disk_use(path)[0]
    return path.lstat().st_size


def _records(folder: Path) -> list[dict[str, Any]]:
    """Returns what the black box has kept of refused steps and errors."""
    try:
        found = read_records(folder)
    except RecordError as error:
        return [{"step": None, "why": "damaged", "error": str(error)}]
    return [
        {"step": step, "why": record.get("why"), "error": _error(record)}
        for step, record in sorted(found.items())
    ]


def _error(record: Mapping[str, Any]) -> str | None:
    error = record.get("error")
    if not isinstance(error, Mapping):
        return None
    return f"{error.get('type')}: {error.get('message')}"

"""Does opening a folder that somebody has changed run code, write elsewhere, hang, or just fail?"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import corpus

ROOT = Path(__file__).parents[2]
NAMES = list(corpus.variants())
QUICK = [
    "pickle_meta.json", "pickle_run", "pickle_arrays", "pickle_beside", "yaml_meta",
    "arrays_swapped", "npz_objects", "state_metadata", "cache", "code_beside",
    "trainer_os_system", "model_class_beside", "model_config_eval", "optimizer_popen",
    "scheduler_relative", "callbacks_beside", "tools_main", "config_deep_list",
    "config_many_lists", "config_overflow", "config_long_number", "record_deep_object",
    "run_long_number", "rows_list", "loaders_text", "leaf_large", "leaf_bool", "batch_huge",
    "window_negative", "window_dtype_O", "config_objects", "config_levels", "config_key_twice",
    "record_twice", "state_levels", "fifo_COMMIT.json", "zeros_meta_unrecorded",
    "victim_metrics.jsonl", "victim_config.json.tmp", "victim_checkpoints_RUN.json.tmp",
    "linked_checkpoints", "linked_meta_unrecorded", "recorded_parent", "recorded_null",
    "set_dot", "logger_parent", "step_huge", "format_version_list", "batches_huge",
    "folder_\u0664",
]  # fmt: skip
REST = [name for name in NAMES if name not in QUICK]
MOST_S, MOST_MEGABYTES = 15, 700


def opened(names: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Opens variants in a process that watches itself; returns what it saw, by variant and way."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "security")]
    done = subprocess.run(
        [sys.executable, "-u", str(ROOT / "tests" / "security" / "open_corpus.py"), str(folder)],
        input="\0".join(names),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return opened(["unchanged", "dangerous", *QUICK], tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return opened(REST, tmp_path_factory.mktemp("rest"))


def faults(found: dict[str, Any]) -> list[str]:
    """Returns what opening a variant did that it must not."""
    lines = []
    for way, result in found.items():
        if not result["is_typed"]:
            lines.append(f"{way}: {result['error']}")
        lines += [f"{way}: {event}" for event in result["seen"]]
        if not result["is_outside_whole"]:
            lines.append(f"{way}: changed what lies beside the run")
        if not result["is_unexecuted"]:
            lines.append(f"{way}: left a file where it ran")
        if result["seconds"] > MOST_S or result["megabytes"] > MOST_MEGABYTES:
            lines.append(f"{way}: {result['seconds']:.1f} s, {result['megabytes']} MB")
    return lines


@cache
def kinds() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in NAMES:
        kind = name.split("_")[0]
        found[kind] = found.get(kind, 0) + 1
    return found


def test_the_corpus_is_large_and_each_name_is_known() -> None:
    assert len(NAMES) >= 400 and len(QUICK) >= 40
    assert set(QUICK) <= set(NAMES)
    assert len(kinds()) >= 20


def test_the_watch_sees_what_is_forbidden(quick: dict[str, dict[str, Any]]) -> None:
    found = {way: faults({way: result}) for way, result in quick["dangerous"].items()}
    assert any("pickle.find_class" in line for line in found["unpickled"])
    assert any(f"import {corpus.CANARY}" in line for line in found["imported"])
    assert any("left a file" in line for line in found["imported"])
    assert any("to write" in line for line in found["written"])
    assert any("os.remove" in line for line in found["removed"])
    assert any("to write" in line for line in found["linked"])
    assert any("changed what lies beside" in line for line in found["linked"])
    assert any("exec" in line for line in found["evaluated"])
    assert any("TimeoutError" in line for line in found["hung"])


def test_an_unchanged_run_is_opened_in_every_way(quick: dict[str, dict[str, Any]]) -> None:
    found = quick["unchanged"]
    assert faults(found) == []
    failed = [way for way, result in found.items() if result["error"] is not None]
    assert failed == ["bare"]  # the class of its model was not registered


@pytest.mark.parametrize("name", QUICK)
def test_a_changed_run_does_no_harm(quick: dict[str, dict[str, Any]], name: str) -> None:
    assert faults(quick[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_every_changed_run_does_no_harm(rest: dict[str, dict[str, Any]], name: str) -> None:
    assert faults(rest[name]) == []


@pytest.mark.parametrize(
    "name",
    [
        "pickle_meta.json", "pickle_arrays", "yaml_meta", "arrays_swapped", "config_deep_list",
        "leaf_large", "fifo_COMMIT.json", "linked_checkpoints", "linked_meta_unrecorded",
        "recorded_parent", "step_huge", "format_version_list", "config_levels",
        "config_key_twice", "record_twice", "config_long_number", "config_overflow",
    ],
)  # fmt: skip
def test_no_way_takes_a_run_that_cannot_be_believed(
    quick: dict[str, dict[str, Any]], name: str
) -> None:
    assert [way for way, result in quick[name].items() if result["error"] is None] == []


@pytest.mark.parametrize(
    "name", ["victim_metrics.jsonl", "set_dot", "window_negative", "rows_list"]
)
def test_a_run_does_not_go_on_with_logs_that_lead_out(
    quick: dict[str, dict[str, Any]], name: str
) -> None:
    assert quick[name]["resume"]["error"] is not None

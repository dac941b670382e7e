"""Does the table of meshes say what it should of a run of two steps?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_mesh(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    options = ["--steps", "2", "--meshes", "8fsdp", "--json", str(file)]
    command = [sys.executable, "benchmarks/meshes.py", *options]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = {row["mesh"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["1", "8fsdp"]
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == [f"| {m}" for m in rows]
    for row in rows.values():
        assert row["max_relative_difference_loss"] < 1e-5
        assert row["max_relative_difference_params"] < 1e-5
    one, fsdp = rows["1"], rows["8fsdp"]
    assert one["collectives"] == {}
    assert fsdp["optimizer_bytes_per_device"] < one["optimizer_bytes_per_device"] / 7
    assert fsdp["collectives"]["all-gather"]["bytes"] > one["param_bytes_per_device"]

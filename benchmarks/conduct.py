"""In what order is everything measured? One child process after the other."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalog import OTHER_REPEATS, REPEATS, missing_packages
from benchmarks.measure import Row
from benchmarks.report import cells

ROOT = Path(__file__).resolve().parents[1]
VIRTUAL = "--xla_force_host_platform_device_count=8"
LAST_LINES = 12


def environment_of(workload: str, peer: str | None = None) -> dict[str, str]:
    """Returns the environment of a child.

    Only the workload ``devices`` asks for a platform: its eight devices are those of a CPU, unless
    ``XLA_FLAGS`` says what the devices are to be. A cache of compiled programs that this shell may
    have set is left to the children, except in ``start``, which brings its own.
    """
    found = dict(os.environ)
    paths = (str(ROOT), found.get("PYTHONPATH", ""))
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if workload == "devices" and "XLA_FLAGS" not in found:
        found |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": VIRTUAL}
    if peer == "keras":
        found["KERAS_BACKEND"] = "jax"
    if workload == "start":
        found.pop("JAX_COMPILATION_CACHE_DIR", None)
    return found


def run_child(
    workload: str, repeats: int, options: dict[str, Any] | None = None, peer: str | None = None
) -> tuple[list[Row], dict[str, Any]]:
    """Returns the rows of a workload, and the machine as its process saw it.

    A process that fails gives a row that says so, with the last line of what it printed.

    Args:
        workload: Name of the catalog.
        repeats: Pairs of each measurement.
        options: More arguments of the measurement.
        peer: Who is measured; None: xtrainer.
    """
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        file, log = Path(folder, "rows.json"), Path(folder, "output.txt")
        command = [sys.executable, "-m", "benchmarks.child", workload, str(file)]
        command += ["--repeats", str(repeats), "--options", json.dumps(options or {})]
        command += [] if peer is None else ["--peer", peer]
        environment = environment_of(workload, peer)
        with log.open("w", encoding="utf-8") as output:
            result = subprocess.run(
                command, cwd=folder, env=environment, stdout=output, stderr=output
            )
        if result.returncode == 0 and file.exists():  # Lightning ends with 0 when it is killed
            found = json.loads(file.read_text(encoding="utf-8"))
            return [Row.from_dict(row) for row in found["rows"]], found["machine"]
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join(lines[-LAST_LINES:]), file=sys.stderr)
    last = lines[-1].strip()[:200] if lines else "without a word"
    case = f"failed with status {result.returncode}"
    return [Row(workload, case, who=peer or "xtrainer", note=last)], {}


def repeats_of(workload: str, asked: int | None) -> int:
    """Returns how often a workload is repeated.

    Example:
        >>> repeats_of("gpt", None), repeats_of("gpt", 3)
        (7, 3)
    """
    return REPEATS.get(workload, OTHER_REPEATS) if asked is None else asked


def measure_all(
    workloads: Sequence[str],
    peers: Sequence[str],
    repeats: int | None,
    say: Callable[[str], None] = print,
    ours: bool = True,
) -> dict[str, Any]:
    """Returns everything that was measured: ``rows`` and, by name, ``machines``.

    Args:
        workloads: Names of the catalog.
        peers: The same; one that is not installed gives a row that says so.
        repeats: Pairs of each measurement; None: the defaults.
        say: Told what is under way.
        ours: Whether xtrainer is measured as well.
    """
    rows: list[Row] = []
    machines: dict[str, Any] = {}
    for peer in [None, *peers] if ours else peers:
        missing = missing_packages(peer) if peer else []
        if missing:
            note = f"not installed: pip install {' '.join(missing)}"
            rows.append(Row("all", "", who=peer or "", note=note))
            continue
        for workload in workloads:
            name = f"{peer} {workload}" if peer else workload
            say(f"measuring {name} ...")
            found, machines[name] = run_child(workload, repeats_of(workload, repeats), peer=peer)
            rows += found
            for row in found:  # a long run that is cut short has said something
                say(f"  {' | '.join(cells(row)[1:-1])}")
    return {"rows": rows, "machines": machines}

"""How long is it from the shell to the first finished step? Fresh processes, in turn."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Pairs, Row, interleave
from benchmarks.starts import MARK

BARE, TRAINER = "benchmarks.starts.bare", "benchmarks.starts.trainer"
LIMIT_S = 300
IMPORTS = "import jax, flax, optax"


def run_script(module: str, cache: str | None) -> dict[str, float]:
    """Returns the seconds from the start of a process to ``imports`` and ``first step``.

    Args:
        module: A script of ``benchmarks.starts``.
        cache: Folder of compiled programs, to be read and filled; None: nothing is kept.
    """
    environment = dict(os.environ)
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [sys.executable, "-m", module, repr(time.time())]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith(MARK)]
    return json.loads(lines[-1].removeprefix(MARK))


def time_import(statement: str) -> float:
    """Returns the seconds of a process that imports something and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, timeout=LIMIT_S)
    return time.perf_counter() - start


def starts(
    case: str, repeats: int, cache: Path | None, scripts: tuple[str, str] = (BARE, TRAINER)
) -> list[Row]:
    """Returns rows for the first step and for the imports before it.

    Args:
        case: Whether compiled programs are found.
        repeats: Pairs that count.
        cache: Folder of compiled programs; None: nothing is kept.
        scripts: The hand-written one and that of the framework.
    """
    bare, own = scripts
    found: dict[str, list[dict[str, float]]] = {bare: [], own: []}

    def run(module: str) -> float:
        folder = None if cache is None else str(cache / module)
        found[module].append(run_script(module, folder))
        return found[module][-1]["first step"]

    interleave(lambda: run(bare), lambda: run(own), repeats)
    rows = []
    for moment in ("first step", "imports"):
        sides = [[seconds[moment] for seconds in found[side][1:]] for side in scripts]
        name = f"{case} start to the first step" if moment == "first step" else f"{case}: imports"
        rows.append(Pairs(*sides).row("start", name, "s", 1.0))
    return rows


def measure(repeats: int) -> list[Row]:
    """Returns rows for a cold start, a warm one, and imports alone."""
    rows = starts("cold", repeats, None)
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        rows += starts("warm", repeats, Path(folder))
    pairs = interleave(
        lambda: time_import(IMPORTS), lambda: time_import("import xtrainer"), repeats
    )
    return [*rows, pairs.row("start", f"import xtrainer / {IMPORTS}", "s", 1.0)]

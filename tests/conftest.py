"""Every test sees eight virtual CPU devices; the settings are made before JAX is imported."""

import os
import shutil
import signal
import tempfile
from typing import Any

_FLAG = "--xla_force_host_platform_device_count"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()
os.environ.setdefault("WANDB_MODE", "offline")

# A shell lets what it starts by "&" ignore an interrupt, and nohup the end of a terminal; so would
# all that the tests start.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# One cache of compiled programs for all workers and child processes of a run, new for each run:
# most of the time goes into compiling, and many tests compile the same steps.
_CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="xtrainer-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Doctests are collected from every file; several of this name would be one module to pytest.
collect_ignore_glob = ["*conftest.py"]


def pytest_unconfigure() -> None:
    """Removes the cache of the run, and forgets how runs inside this process have ended."""
    from xtrainer.launch.exits import note_end_of_run

    note_end_of_run(0)
    if _CACHE is not None:
        shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Shows what tests have recorded as ``table``."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "table" and getattr(report, "when", "") == "call":
                    terminalreporter.write_line(f"\n{value}")

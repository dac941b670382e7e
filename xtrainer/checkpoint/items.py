"""What does one step hold? The state, and everything else as JSON, saved as one unit."""

import contextlib
import functools
import importlib.metadata
import math
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from xtrainer.errors import CheckpointError
from xtrainer.json_text import MAX_LEVELS
from xtrainer.tree import path_str
from xtrainer.types import JSON, HostMetrics, PyTree

META_KEYS = frozenset(
    {
        "progress", "loaders", "callbacks", "config", "batch_spec", "versions", "mesh",
        "process_count", "metrics", "leaves", "loggers", "rows", "ledger", "git", "numerics",
        "data",
    }
)  # fmt: skip
LATER_KEYS = frozenset({"data"})
"""What checkpoints of earlier versions, which are read as well, do not have."""

MAX_LISTED = 20
_MAX_BITS = 14_000  # of a whole number, which has less than json_text.MAX_DIGITS then
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "xtrainer")


@dataclass(frozen=True)
class CheckpointItems:
    """What one step holds.

    Attributes:
        state: A pytree of JAX arrays, usually a ``TrainState``.
        meta: JSON as :func:`gather_meta` returns it.

    Raises:
        CheckpointError: If ``meta`` lacks a key, has an unknown one, or is not JSON.
    """

    state: PyTree
    meta: dict[str, JSON]

    def __post_init__(self) -> None:
        missing, unknown = META_KEYS - self.meta.keys(), self.meta.keys() - META_KEYS
        if missing or unknown:
            raise CheckpointError(
                f"meta: found no {sorted(missing)} and the unknown {sorted(unknown)}, expected "
                f"exactly the keys {sorted(META_KEYS)}. Build it with gather_meta(...)."
            )
        check_json(self.meta, "meta")


def gather_meta(
    state: PyTree,
    *,
    progress: JSON,
    loaders: JSON,
    callbacks: JSON,
    config: JSON,
    batch_spec: JSON,
    mesh: jax.sharding.Mesh,
    metrics: HostMetrics,
    loggers: JSON = None,
    rows: JSON = None,
    ledger: JSON = None,
    data: JSON = None,
) -> dict[str, JSON]:
    """Returns everything about a step that is not an array.

    Args:
        state: The state that is saved with it; its leaves are described, not read.
        progress: Epoch, step and the like.
        loaders: The position of each loader by name.
        callbacks: The state of each callback by name.
        config: All configs of the run.
        batch_spec: Shapes and dtypes of a batch.
        mesh: The mesh of the run; its axis sizes are recorded.
        metrics: The newest metrics; NaN and infinities are kept as text, JSON has none.
        loggers: How far each logger has come.
        rows: The metrics of steps that no row holds yet, and the newest ones.
        ledger: Seconds of the run so far, by what they were spent on.
        data: What each loader says its data are, by name, where it does.

    Raises:
        CheckpointError: If a value is not JSON or the state cannot be saved; names the path.
    """
    meta = {
        "progress": progress,
        "loaders": loaders,
        "callbacks": callbacks,
        "config": config,
        "batch_spec": batch_spec,
        "versions": library_versions(),
        "mesh": {str(axis): int(size) for axis, size in mesh.shape.items()},
        "process_count": jax.process_count(),
        "metrics": {name: float_to_json(value) for name, value in metrics.items()},
        "leaves": describe_leaves(state),
        "loggers": loggers or {},
        "rows": rows,
        "ledger": ledger or {},
        "git": git_revision(),
        "numerics": numerics(),
        "data": data or {},
    }
    check_json(meta, "meta")
    return meta


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that shape a checkpoint."""
    return dict(_library_versions())


@functools.cache
def _library_versions() -> dict[str, str]:
    """Reads files once: no save is to fail for want of a file handle, nor to take the time."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            versions[package] = "unknown"
    return versions


def numerics() -> dict[str, JSON]:
    """Returns the settings of JAX that change the numbers of a run."""
    names = (
        "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
        "jax_threefry_partitionable",
    )  # fmt: skip
    return {name: getattr(jax.config, name) for name in names}


class _Program:
    """Which file is the program, where it is another than the one Python was started with."""

    path: str | None = None


@functools.cache
def _program() -> _Program:
    return _Program()


@contextlib.contextmanager
def program_is(path: str | Path) -> Iterator[None]:
    """Says which file is the program inside, where a command such as ``xtrainer train`` runs it."""
    before, _program().path = _program().path, str(path)
    try:
        yield
    finally:
        _program().path = before


def git_revision() -> str | None:
    """Returns the commit of the program that runs, None where it is in no repository of git.

    A program whose folder has changes that are not committed has a ``+`` behind it.
    """
    return _git_revision(_program().path or getattr(sys.modules.get("__main__"), "__file__", None))


@functools.cache
def _git_revision(path: str | None) -> str | None:
    folder = Path(path).resolve().parent if path else Path.cwd()

    def ask(*command: str) -> str | None:
        asked = ["git", "-C", str(folder), *command]
        try:
            said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return None
        return said.stdout.strip() if said.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    changed = revision and ask("status", "--porcelain", "--untracked-files=no")
    return f"{revision}+" if changed else revision


def describe_leaves(state: PyTree) -> dict[str, JSON]:
    """Returns shape and dtype of each leaf by its path.

    Example:
        >>> import jax.numpy as jnp
        >>> describe_leaves({"w": jnp.ones((2, 3), jnp.bfloat16)})
        {'w': {'shape': [2, 3], 'dtype': 'bfloat16'}}

    Raises:
        CheckpointError: For leaves that a checkpoint cannot hold, and for two leaves whose paths
            would be one on disk; lists them.
    """
    leaves: dict[str, JSON] = {}
    problems: list[str] = []
    stored_as: dict[str, str] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        path = path_str(key_path)
        # Orbax joins keys by dots: {"a.b": x, "a": {"b": y}} would be restored as y and y.
        stored = path.replace("/", ".")
        if stored in stored_as:
            problems.append(f"{path}: found the same name on disk as {stored_as[stored]}")
        stored_as[stored] = path
        problem = _leaf_problem(leaf)
        if problem:
            problems.append(f"{path}: found {problem}")
        else:
            leaves[path] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    if not leaves and not problems:
        problems.append("state: found no leaf at all")
    if problems:
        raise CheckpointError(
            f"The state cannot be saved, expected JAX arrays with at least one element and "
            f"distinct paths. Change or rename these leaves:\n{listed(problems)}"
        )
    return leaves


def _leaf_problem(leaf: Any) -> str | None:
    if not isinstance(leaf, jax.Array):
        return f"a {type(leaf).__module__}.{type(leaf).__qualname__}"
    if leaf.is_deleted():
        return "an array that was already donated"
    if leaf.size == 0:
        return f"an array of shape {leaf.shape} without elements"
    if str(leaf.dtype) in ("uint4", "uint2", "int2"):
        return f"dtype {leaf.dtype}, which cannot be written"
    return None


def check_json(value: Any, path: str) -> None:
    """Checks that ``value`` is JSON and would be read back as the same value.

    Raises:
        CheckpointError: Listing the path of every value that is not.

    Example:
        >>> check_json({"index": [1, None, "a"]}, "loaders")
    """
    problems: list[str] = []
    _collect_json_problems(value, path, 0, problems)
    if problems:
        raise CheckpointError(
            "Values that are not JSON, expected dict with text keys, list, str, int, finite "
            f"float, bool or None. Convert them before saving:\n{listed(problems)}"
        )


def _collect_json_problems(value: Any, path: str, depth: int, problems: list[str]) -> None:
    if depth > MAX_LEVELS:
        problems.append(f"{path}: found more than {MAX_LEVELS} levels")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                problems.append(f"{path}: found the key {key!r} of type {type(key).__name__}")
            _collect_json_problems(item, f"{path}/{key}", depth + 1, problems)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _collect_json_problems(item, f"{path}/{index}", depth + 1, problems)
    elif isinstance(value, float):
        if not math.isfinite(value):
            problems.append(f"{path}: found {value!r}")
    elif isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            problems.append(f"{path}: found a number of {value.bit_length()} bits")
    elif not (value is None or isinstance(value, str)):
        problems.append(f"{path}: found a {type(value).__module__}.{type(value).__qualname__}")


def float_to_json(value: float | None) -> JSON:
    """Returns a float as JSON: non-finite ones as ``"nan"``, ``"inf"`` or ``"-inf"``."""
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else repr(value)


def float_from_json(value: JSON) -> float | None:
    """Returns what :func:`float_to_json` was given.

    Raises:
        ValueError: If ``value`` is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"found {value!r}, expected a number")
    return float(value)


def listed(problems: list[str]) -> str:
    """Returns at most the first twenty problems, one a line, and how many more there are."""
    lines = [f"  - {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  - ... and {len(problems) - MAX_LISTED} more")
    return "\n".join(lines)


def compare_leaves(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns one line for each path at which a saved state and a wanted one differ.

    Args:
        saved: Leaves as :func:`describe_leaves` gave them.
        wanted: Anything with ``shape`` and ``dtype``, by path.
    """
    lines = []
    # What the model has comes first: the state of the optimizer only repeats it.
    paths = sorted(saved.keys() | wanted.keys())
    for path in sorted(paths, key=lambda path: not path.startswith("params")):
        if path not in wanted:
            lines.append(f"{path}: unexpected, only the checkpoint has it")
        elif path not in saved:
            lines.append(f"{path}: missing, the checkpoint does not have it")
        else:
            have = (tuple(saved[path]["shape"]), saved[path]["dtype"])
            want = (tuple(wanted[path].shape), str(wanted[path].dtype))
            for name, found, expected in zip(("shape", "dtype"), have, want, strict=True):
                if found != expected:
                    lines.append(f"{path}: {name} {found} in the checkpoint, {expected} wanted")
    return lines

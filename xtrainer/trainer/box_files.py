"""How is a step that went wrong kept in files? A record in JSON, and the arrays of its batch.

Synopsis:
    RUN/black_box/step_7/record.json     # see xtrainer.trainer.black_box for what is in it
    RUN/black_box/step_7/batch.npz       # arrays leaf_0, leaf_1, ... and row_mask
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.checkpoint.commit import read_json
from xtrainer.checkpoint.durable import rename, sync_tree, write_json
from xtrainer.errors import XTrainerError
from xtrainer.tree import flatten_with_paths, num_bytes
from xtrainer.types import JSON, BatchLike

FOLDER, RECORD, BATCH = "black_box", "record.json", "batch.npz"
FORMAT = 1
_KEY = jax.dtypes.prng_key


class RecordError(XTrainerError, ValueError):
    """A record of the black box that is missing or cannot be read."""


def describe_batch(batch: BatchLike) -> list[dict[str, JSON]]:
    """Returns path, dtype, shape and statistics of each leaf.

    Smallest, largest and mean are those of the finite numbers; None where there are none.

    Example:
        >>> describe_batch({"x": np.array([1.0, np.nan, 3.0], np.float32)})[0]["mean"]
        2.0
    """
    leaves = flatten_with_paths(batch)
    measured = {
        path: x
        for path, x in leaves.items()
        if x.size and not jnp.issubdtype(x.dtype, _KEY) and not np.issubdtype(x.dtype, np.complex64)
    }
    numbers = jax.device_get(_all_statistics(measured))
    said: list[dict[str, JSON]] = []
    for path, leaf in leaves.items():
        entry: dict[str, JSON] = {"path": path, "dtype": str(leaf.dtype), "shape": [*leaf.shape]}
        if jnp.issubdtype(leaf.dtype, _KEY):
            entry["impl"] = str(jax.random.key_impl(leaf))
        if path in numbers:
            counts = {name: int(numbers[path].pop(name)) for name in ("nan", "inf", "finite")}
            entry |= {name: counts[name] for name in ("nan", "inf")}
            for name, value in numbers[path].items():
                entry[name] = float(value) if counts["finite"] else None
        said.append(entry)
    return said


@jax.jit
def _all_statistics(arrays: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
    return jax.tree.map(_statistics, arrays)


def _statistics(x: jax.Array) -> dict[str, jax.Array]:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.int32) if x.dtype == bool or x.dtype.itemsize < 4 else x
        none, mean = jnp.zeros((), jnp.int32), x.astype(jnp.float32).mean()
        counts = {"nan": none, "inf": none, "finite": jnp.ones((), jnp.int32)}
        return {"min": x.min(), "max": x.max(), "mean": mean, **counts}
    x = x if x.dtype.itemsize > 4 else x.astype(jnp.float32)
    finite, count = jnp.isfinite(x), jnp.isfinite(x).sum()
    return {
        "min": jnp.where(finite, x, jnp.inf).min(),
        "max": jnp.where(finite, x, -jnp.inf).max(),
        "mean": jnp.where(finite, x, 0).sum() / jnp.maximum(count, 1),
        "nan": jnp.isnan(x).sum(),
        "inf": jnp.isinf(x).sum(),
        "finite": count,
    }


def batch_arrays(batch: BatchLike, row_mask: Any, limit: int) -> dict[str, np.ndarray] | str:
    """Returns the arrays of a batch for a file, or why it is not kept.

    Args:
        batch: Of any structure.
        row_mask: bool ``(rows,)``, False for padding.
        limit: Bytes that it may have.
    """
    size = num_bytes((batch, row_mask))
    if size > limit:
        return f"It has {size:,} bytes, and black_box_max_bytes is {limit:,}."
    leaves = {f"leaf_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(batch))}
    leaves["row_mask"] = row_mask
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves.values()):
        return "It is spread over several processes."
    return {name: _plain(leaf) for name, leaf in leaves.items()}


def _plain(leaf: Any) -> np.ndarray:
    """Returns an array that NumPy can write: others as keys' data or as their bits."""
    if jnp.issubdtype(leaf.dtype, _KEY):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(jax.device_get(leaf))
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def write_record(
    run_folder: Path, record: Mapping[str, JSON], arrays: Mapping[str, np.ndarray] | None
) -> Path | None:
    """Writes a record, whole or not at all; None where there is one of that step already.

    Args:
        run_folder: Of the run.
        record: What ``record.json`` says; its ``step`` names the folder.
        arrays: Of the batch, None for none.

    Raises:
        OSError: If the disk does not take it.
    """
    folder = run_folder / FOLDER
    final = folder / f"step_{record['step']}"
    if final.exists():
        return None
    temporary = folder / f".{final.name}.{os.getpid()}"
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        if arrays is not None:
            with open(temporary / BATCH, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        write_json(temporary / RECORD, record)
        sync_tree(temporary)
        rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def read_records(run_folder: Path) -> dict[int, dict[str, Any]]:
    """Returns the records of a run by step.

    Raises:
        RecordError: If one cannot be read.
    """
    records = {}
    for path in sorted((run_folder / FOLDER).glob(f"step_*/{RECORD}")):
        try:
            record = read_json(path)
        except (OSError, ValueError, XTrainerError) as error:
            raise RecordError(f"{path}: found no JSON ({error}), expected a record.") from error
        step, version = record.get("step"), record.get("format")
        if version != FORMAT or type(step) is not int or path.parent.name != f"step_{step}":
            raise RecordError(
                f"{path}: found format {version!r} of step {step!r}, expected format {FORMAT} and "
                "the step of its folder. It is damaged or of another version; move it away."
            )
        records[step] = record
    return records


def read_batch(
    run_folder: Path, record: Mapping[str, Any], like: BatchLike
) -> tuple[BatchLike, np.ndarray] | None:
    """Returns the batch of a record and its row mask, None where it was not kept.

    Args:
        run_folder: Of the run.
        record: Of :func:`read_records`.
        like: A batch of the same structure.

    Raises:
        RecordError: If the arrays are not those that the record describes.
    """
    path = run_folder / FOLDER / f"step_{record['step']}" / BATCH
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = record["batch"]["leaves"]
        leaves = [
            _typed(arrays[f"leaf_{index}"], leaf["dtype"], leaf.get("impl"))
            for index, leaf in enumerate(told)
        ]
        names, wanted = [leaf["path"] for leaf in told], list(flatten_with_paths(like))
        if names != wanted:
            raise ValueError(f"the leaves {names}, and batches of this experiment have {wanted}")
        return jax.tree.unflatten(jax.tree.structure(like), leaves), arrays["row_mask"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: found {error}, expected the arrays that {RECORD} describes. Move the file "
            "away, and the batch is taken from the loader."
        ) from error


def _typed(array: np.ndarray, dtype: str, impl: str | None) -> Any:
    if impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    wanted = jnp.dtype(dtype)
    return array if array.dtype == wanted else array.view(wanted)

"""Which text does the model read? The Python files of the standard library that is running it."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xtrainer.data import shard_rows
from xtrainer.errors import LoaderError
from xtrainer.types import DataShard

Batch = dict[str, np.ndarray]

END_OF_FILE = b"\0"
"""Stands after each file, so that a model can tell where one ends."""

LEFT_OUT = frozenset(
    # Not the library: what was installed on top of it, and caches.
    ["site-packages", "dist-packages", "__pycache__"]
    # The library's own tests: half of it by size, and many distributions do not ship them.
    + ["test", "tests", "idle_test"]
    # Generated tables rather than code written by people.
    + ["encodings", "pydoc_data"]
)
"""Folders of the standard library that are not read."""

SHARES = (("test", 10), ("val", 10), ("train", 80))
"""How many files of a hundred go to each set, on average."""


def set_of(relative_path: str) -> str:
    """Returns the set a file belongs to; only its path decides, on every machine alike.

    Args:
        relative_path: Path below the standard library's folder, with ``/`` between its parts.

    Example:
        >>> set_of("json/decoder.py") == set_of("json/decoder.py")
        True
    """
    number = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8], "big") % 100
    for name, share in SHARES:
        if number < share:
            return name
        number -= share
    raise AssertionError("the shares add up to a hundred")


def source_files(root: Path) -> list[str]:
    """Returns the paths, below ``root``, of the files that are read, in a fixed order."""
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = (
        path.as_posix()
        for path in paths
        if not LEFT_OUT.intersection(path.parts) and not path.name.startswith("_sysconfigdata")
    )
    return sorted(kept)


def load_splits(root: str | Path | None = None) -> dict[str, np.ndarray]:
    """Returns the bytes of ``train``, ``val`` and ``test`` as arrays of uint8.

    Args:
        root: A folder of Python files; the running interpreter's standard library where None.

    Raises:
        LoaderError: If a set has no file.
    """
    folder = Path(root or sysconfig.get_paths()["stdlib"])
    files: dict[str, list[bytes]] = {"train": [], "val": [], "test": []}
    for name in source_files(folder):
        files[set_of(name)].append((folder / name).read_bytes() + END_OF_FILE)
    empty = [name for name, contents in files.items() if not contents]
    if empty:
        raise LoaderError(
            f"Found no Python files for {', '.join(empty)} in {folder}, expected the source of the "
            "standard library there. Use a Python that ships it, or set data.root to a folder of "
            "Python files."
        )
    return {name: np.frombuffer(b"".join(contents), np.uint8) for name, contents in files.items()}


def _check_length(stream: np.ndarray, context_length: int) -> None:
    if len(stream) < context_length + 1:
        raise LoaderError(
            f"Found {len(stream)} bytes of text, expected at least context_length + 1 = "
            f"{context_length + 1}. Shorten context_length or read more files."
        )


class RandomWindows:
    """Endless batches of windows at random places; a batch's number alone decides what is in it.

    Args:
        stream: Bytes to draw from.
        batch_size: Windows in a batch, over all processes.
        context_length: Inputs in a window; one byte more is read for the targets.
        seed: Decides all draws.

    Raises:
        LoaderError: If the stream is shorter than a window.
    """

    def __init__(
        self, stream: np.ndarray, batch_size: int, context_length: int, seed: int = 0
    ) -> None:
        _check_length(stream, context_length)
        self.stream = stream
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.position = 0
        self._rows = slice(0, batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Returns an iterator that goes on where the one before stopped."""
        return self._endless()

    def _endless(self) -> Iterator[Batch]:
        while True:
            starts = self._starts(self.position)[self._rows]
            self.position += 1
            yield cut_windows(self.stream, starts, self.context_length)

    def batch(self, number: int) -> Batch:
        """Returns the whole batch of a number, counted from 0."""
        return cut_windows(self.stream, self._starts(number), self.context_length)

    def _starts(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, number))
        return rng.integers(0, len(self.stream) - self.context_length, self.batch_size)

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch from the next one on; all parts are drawn together.

        Raises:
            LoaderError: If the batch size does not divide into the parts.
        """
        self._rows = shard_rows(shard, self.batch_size)

    def get_state(self) -> dict[str, Any]:
        """Returns the position: the number of the next batch."""
        return {"next_batch": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a position that :meth:`get_state` gave."""
        self.position = int(state["next_batch"])


class SequentialWindows:
    """Each byte of an evaluation set once, in order, each time it is iterated.

    The last batch may hold fewer windows; what a window has beyond the end is masked.

    Args:
        stream: Bytes to evaluate on.
        batch_size: Windows in a batch, over all processes.
        context_length: Inputs in a window.
        max_bytes: Where the set holds more targets, take this many or a little fewer: windows at
            equal distances, so that every part of the set has its say. None takes all.

    Raises:
        LoaderError: If the stream is shorter than a window.
    """

    def __init__(
        self,
        stream: np.ndarray,
        batch_size: int,
        context_length: int,
        max_bytes: int | None = None,
    ) -> None:
        _check_length(stream, context_length)
        self.stream = stream
        self.batch_size = batch_size
        self.context_length = context_length
        starts = np.arange(0, len(stream) - 1, context_length)
        if max_bytes is not None and max_bytes < len(stream) - 1:
            count = max(max_bytes // context_length, 1)
            starts = starts[np.arange(count) * len(starts) // count]
        self.starts = starts
        self.position = 0
        self._resume_at = 0
        self._rows = slice(0, batch_size)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-len(self.starts) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Returns an iterator over all batches, or over what ``set_state`` left of them."""
        self.position, self._resume_at = self._resume_at, 0
        return self._pass(self.position)

    def _pass(self, first: int) -> Iterator[Batch]:
        for number in range(first, len(self)):
            self.position = number + 1
            starts = self.starts[number * self.batch_size : (number + 1) * self.batch_size]
            yield cut_windows(self.stream, starts[self._rows], self.context_length)

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch from the next one on, none where a batch ends before.

        Raises:
            LoaderError: If the batch size does not divide into the parts.
        """
        self._rows = shard_rows(shard, self.batch_size)

    def target_positions(self) -> np.ndarray:
        """Returns where in the stream each evaluated target stands, in order, over all parts."""
        offsets = np.arange(1, self.context_length + 1)
        positions = (self.starts[:, None] + offsets[None, :]).reshape(-1)
        return positions[positions < len(self.stream)]

    def get_state(self) -> dict[str, Any]:
        """Returns the position: the number of the next batch."""
        return {"next_batch": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a position that :meth:`get_state` gave."""
        self.position = self._resume_at = int(state["next_batch"])


def cut_windows(stream: np.ndarray, starts: np.ndarray, context_length: int) -> Batch:
    """Returns a batch of the windows that begin at ``starts``.

    A window that reaches over the end of the stream is filled up with zeros, where ``mask`` is 0.
    """
    index = starts[:, None] + np.arange(context_length + 1)[None, :]
    inside = index < len(stream)
    windows = np.where(inside, stream[np.minimum(index, len(stream) - 1)], 0).astype(np.uint8)
    mask = inside[:, 1:].astype(np.float32)
    return {"inputs": windows[:, :-1], "targets": windows[:, 1:], "mask": mask}

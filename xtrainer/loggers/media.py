"""What may an image, a histogram or a table be, and in what form are they handed on?"""

import csv
import io
import numbers
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from xtrainer.errors import MetricError

Cell = str | int | float | bool | None
"""What stands in a cell of a table."""

_CHANNELS = (1, 3, 4)


def host_image(key: str, image: Any) -> np.ndarray:
    """Returns a copy of an image as uint8 ``(height, width, channels)``.

    Args:
        key: How messages call it.
        image: ``(height, width)``, or with 1, 3 or 4 channels last; uint8, or bools or floats from
            0 to 1.

    Raises:
        MetricError: For anything else.

    Example:
        >>> host_image("ramp", [[0.0, 0.5, 1.0]])[..., 0].tolist()
        [[0, 128, 255]]
    """
    array = _array("image", key, image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or not array.size:
        raise MetricError(
            f"The image {key!r} has the shape {np.shape(image)}, expected (height, width) or "
            "(height, width, channels) with 1, 3 or 4 channels. Log one image of a batch at a time."
        )
    if array.dtype == np.uint8:
        return np.array(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "fV":
        raise MetricError(
            f"The image {key!r} has the dtype {array.dtype}, expected uint8, or floats from 0 to 1."
        )
    values = array.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN is neither
        raise MetricError(
            f"The image {key!r} has values from {low:g} to {high:g}, expected uint8, or floats "
            "from 0 to 1. Scale it first."
        )
    return np.round(values * 255.0).astype(np.uint8)


def host_histogram(key: str, counts: Any, edges: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns copies of the counts and edges of a histogram, both float64.

    Args:
        key: How messages call it.
        counts: One for each bin.
        edges: One more than there are bins, rising.

    Raises:
        MetricError: If they are something else.

    Example:
        >>> [part.tolist() for part in host_histogram("w", [2, 1], [0, 0.5, 1])]
        [[2.0, 1.0], [0.0, 0.5, 1.0]]
    """
    counts, edges = (np.asarray(_array("histogram", key, part)) for part in (counts, edges))
    fits = counts.ndim == edges.ndim == 1 and 0 < len(counts) == len(edges) - 1
    if not fits or not {counts.dtype.kind, edges.dtype.kind} <= set("biuf"):
        raise MetricError(
            f"The histogram {key!r} has counts of shape {counts.shape} and edges of shape "
            f"{edges.shape}, expected (bins,) and (bins + 1,) numbers, as numpy.histogram gives."
        )
    counts, edges = counts.astype(np.float64), edges.astype(np.float64)
    rises = np.isfinite(edges).all() and (np.diff(edges) >= 0).all()
    if not rises or not np.isfinite(counts).all() or (counts < 0).any():
        raise MetricError(
            f"The histogram {key!r} has negative or non-finite counts, or edges that do not rise; "
            "expected finite counts >= 0 and rising, finite edges."
        )
    return counts, edges


def host_table(
    key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> tuple[list[str], list[list[Cell]]]:
    """Returns a table of plain texts and numbers.

    Raises:
        MetricError: If a row has another length than there are columns, or a cell is neither.

    Example:
        >>> host_table("sizes", ["name", "rows"], [("a", np.int32(3))])
        (['name', 'rows'], [['a', 3]])
    """
    names = [str(name) for name in columns]
    plain = [[_cell(key, value) for value in row] for row in rows]
    wrong = next((row for row in plain if len(row) != len(names)), None)
    if wrong is not None or not names:
        raise MetricError(
            f"The table {key!r} has {len(names)} columns and the row {wrong!r:.80}, expected a "
            "value in each row for each column, and at least one column."
        )
    return names, plain


def _array(what: str, key: str, value: Any) -> np.ndarray:
    if not isinstance(key, str):
        raise MetricError(f"Found the {what} name {key!r}, expected a text. Rename it.")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"The {what} {key!r} is a {type(value).__name__}, expected an array of numbers."
        ) from error


def _cell(key: str, value: Any) -> Cell:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic) or getattr(value, "shape", None) == ():
        value = np.asarray(value).item()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    raise MetricError(
        f"The table {key!r} has a cell {value!r:.80} ({type(value).__name__}), expected a text or "
        "a number."
    )


def encode_png(image: np.ndarray) -> bytes:
    """Returns an image as a PNG file, which needs no package.

    Args:
        image: uint8 ``(height, width, channels)`` with 1, 3 or 4 channels.

    Example:
        >>> encode_png(np.zeros((2, 2, 3), np.uint8))[1:4]
        b'PNG'
    """
    height, width, channels = image.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter, none
    lines[:, 1:] = image.reshape(height, -1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def table_csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table as CSV.

    Example:
        >>> table_csv(["a", "b"], [["x, y", 1]])
        'a,b\\n"x, y",1\\n'
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([columns, *rows])
    return stream.getvalue()


def table_markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table as Markdown.

    Example:
        >>> print(table_markdown(["a", "b"], [["x|y", 1]]))
        | a | b |
        |---|---|
        | x\\|y | 1 |
    """
    lines = [columns, *rows]
    texts = [" | ".join(_markdown_cell(cell) for cell in line) for line in lines]
    return "\n".join(
        [f"| {texts[0]} |", "|" + "---|" * len(columns)] + [f"| {t} |" for t in texts[1:]]
    )


def _markdown_cell(cell: Cell) -> str:
    return " ".join(("" if cell is None else str(cell)).replace("|", "\\|").split())


def file_name(key: str) -> str:
    """Returns a key as one part of a path: letters, digits, ``-`` and ``_``.

    Example:
        >>> file_name("table/of all")
        'table_of_all'
    """
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in key)[:100] or "_"

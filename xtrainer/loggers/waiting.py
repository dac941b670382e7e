"""How much may wait for a tool that is slow or away, and what makes room for what is newer?"""

from collections.abc import Sequence
from typing import Any

ROWS = (
    "log_metrics",
    "log_text",
    "log_model",
    "log_image",
    "log_histogram",
    "log_table",
    "log_best",
)
"""Calls that are counted where they are lost; the others say how the tool is to be."""

MAX_WAITING = 1000
"""Calls, at the most."""

MAX_IMAGES = 20
"""Images among them, which are a thousand times as large as a row."""


def number_to_drop(waiting: Sequence[tuple[str, tuple[Any, ...]]]) -> int | None:
    """Returns the number of the call that makes room for the last one; None: there is room.

    Example:
        >>> number_to_drop([("log_image", ())] * 21), number_to_drop([("log_text", ())] * 21)
        (0, None)
    """
    if waiting and waiting[-1][0] == "log_image":
        images = [number for number, (name, _) in enumerate(waiting) if name == "log_image"]
        if len(images) > MAX_IMAGES:
            return images[0]
    if len(waiting) <= MAX_WAITING:
        return None
    may_go = (*ROWS, "flush")
    return next((number for number, (name, _) in enumerate(waiting) if name in may_go), 0)

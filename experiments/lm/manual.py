"""Which other text is there on every machine? The chapters of the manual that Python ships."""

import importlib
from collections.abc import Mapping

import numpy as np

from lm.text import END_OF_FILE, set_of
from xtrainer.errors import LoaderError


def load_manual(topics: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Returns the bytes of ``train``, ``val`` and ``test`` as arrays of uint8.

    It is English with a little code, what ``help("assert")`` shows; none of it is among the files
    of :func:`lm.text.load_splits`. A chapter's name decides to which set it belongs.

    Args:
        topics: Chapters by name; those of the running Python where None.

    Raises:
        LoaderError: If a set has no chapter, or this Python ships none.

    Example:
        >>> sets = load_manual({str(number): "text" for number in range(99)})
        >>> sorted(sets), bytes(sets["val"][:5])
        (['test', 'train', 'val'], b'text\\x00')
    """
    topics = _shipped() if topics is None else topics
    chapters: dict[str, list[bytes]] = {"train": [], "val": [], "test": []}
    for name in sorted(topics):
        chapters[set_of(f"manual/{name}")].append(topics[name].encode() + END_OF_FILE)
    empty = [name for name, texts in chapters.items() if not texts]
    if empty:
        raise LoaderError(
            f"Found {len(topics)} chapters and none of them for {', '.join(empty)}, expected some "
            "for each set. Use a Python that ships the module pydoc_data.topics whole."
        )
    return {name: np.frombuffer(b"".join(texts), np.uint8) for name, texts in chapters.items()}


def _shipped() -> Mapping[str, str]:
    try:
        return importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise LoaderError(
            f"Found no manual ({error}), expected the module pydoc_data.topics of the standard "
            "library. Install it, or use another Python."
        ) from error

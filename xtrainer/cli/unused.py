"""Which settings of an experiment does nobody read? Those that no code beside it ever names."""

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

KNOWN = ("num_epochs", "num_train_steps", "steps_per_epoch", "resume")
"""What ``xtrainer plan`` and ``train_model`` read, whatever the experiment calls them for."""


@contextlib.contextmanager
def noting_reads(config: ConfigDict) -> Iterator[set[str]]:
    """Gives the paths of a config's settings that are read meanwhile; it fills as they are.

    Example:
        >>> config = ConfigDict({"data": {"rows": 4, "root": "here"}})
        >>> with noting_reads(config) as seen:
        ...     rows = config.data.rows
        >>> sorted(seen)
        ['data', 'data.rows']
    """
    nodes = dict(_nodes(config, ""))
    paths = {id(node): path for path, node in nodes.items()}
    seen: set[str] = set()
    read = ConfigDict.__getitem__

    def noted(self: ConfigDict, key: str) -> Any:
        if id(self) in paths:
            seen.add(_join(paths[id(self)], key))
        return read(self, key)

    ConfigDict.__getitem__ = noted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        ConfigDict.__getitem__ = read  # type: ignore[method-assign]


def unused_settings(
    config: ConfigDict, seen: set[str], path: Path, get_config: Callable[..., Any]
) -> list[str]:
    """Returns the settings that were not read, and whose names stand nowhere but in ``get_config``.

    Args:
        config: Of the experiment.
        seen: What was read of it.
        path: The experiment's file; modules in its folder may read settings, too.
        get_config: Its function that makes the config.
    """
    text = _source(path, get_config)
    leaves = [
        _join(parent, key)
        for parent, node in _nodes(config, "")
        for key in node
        if not isinstance(node[key], ConfigDict)
    ]
    return [
        leaf
        for leaf in leaves
        if leaf not in seen
        and leaf not in KNOWN
        and not re.search(rf"\b{re.escape(leaf.rsplit('.', 1)[-1])}\b", text)
    ]


def _source(path: Path, get_config: Callable[..., Any]) -> str:
    """Returns the text of an experiment and of its neighbours, without ``get_config``."""
    files = {path}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and path.parent in Path(file).resolve().parents:
            files.add(Path(file).resolve())
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(files)]
    with contextlib.suppress(OSError, TypeError):
        own = inspect.getsource(get_config)
        texts = [text.replace(own, "") for text in texts]
    return "\n".join(texts)


def _nodes(config: ConfigDict, path: str) -> Iterator[tuple[str, ConfigDict]]:
    yield path, config
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from _nodes(value, _join(path, key))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)

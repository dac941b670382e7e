"""Where in the user's model is an operation of a traced function? Module, pass, line of source."""

import contextlib
import functools
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
import optax

_WRAPPED = re.compile(r"(\w+)\((.*)\)")
_OURS = Path(__file__).parents[1]
# Scopes that JAX puts in for itself, and which are no module's.
_NO_MODULES = frozenset({"", "checkpoint", "rematted_computation"})


@dataclass(frozen=True)
class Place:
    """An operation, and what is not finite in its result.

    Attributes:
        primitive: Its name in JAX.
        module: Path of the module, from the model's class; empty outside of all modules.
        backward: Whether it is of the backward pass.
        iterations: Of each loop around it the iteration, from 0, and how many there are (None: not
            known before); the outermost loop first.
        shape: Of its result.
        dtype: The same.
        nans: Entries of the result that are NaN.
        infs: Entries that are Inf or -Inf.
        source: ``file.py:line`` of the user's code, None where it is not known.
    """

    primitive: str
    module: str
    backward: bool
    iterations: tuple[tuple[int, int | None], ...]
    shape: tuple[int, ...]
    dtype: str
    nans: int
    infs: int
    source: str | None

    def __str__(self) -> str:
        """Returns the place in words."""
        words = [f"module {self.module}" if self.module else "no module"]
        for index, length in self.iterations:
            words.append(f"iteration {index}" + (f" of {length}" if length else ""))
        kinds = ((self.nans, "NaN"), (self.infs, "Inf"))
        found = " and ".join(f"{count} {kind}" for count, kind in kinds if count)
        words += [f"primitive {self.primitive}", f"output {self.shape} {self.dtype}: {found}"]
        return ", ".join(words) + (f" ({self.source})" if self.source else "")


def module_path(stack: str) -> tuple[str, bool]:
    """Returns the path of the module in a stack of names, and whether it is of the backward pass.

    Example:
        >>> module_path("transpose(jvp(Net))/jvp(Net)/rematted_computation/block_1/dense")
        ('Net/block_1/dense', True)
        >>> module_path("transpose(jvp(Net))/block_1/jvp(Net)/block_1")
        ('Net/block_1', True)
        >>> module_path("jvp(Net)/block_0/vmap()")
        ('Net/block_0', False)
    """
    parts: list[str] = []
    for part in _split(stack):
        name, wrapped = part, False
        while match := _WRAPPED.fullmatch(name):
            name, wrapped = match[2], True
        inner = [one for one in _split(name) if one not in _NO_MODULES]
        # A transformation within another one tells the way again from its beginning.
        again = wrapped and inner and parts[: len(inner)] == inner
        parts = inner if again else parts + inner
    return "/".join(parts), "transpose(" in stack


def _split(stack: str) -> list[str]:
    """Returns what slashes divide that are not within parentheses."""
    parts, depth = [""], 0
    for letter in stack:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "/" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def source_line(traceback: Any) -> str | None:
    """Returns ``file.py:line`` of the innermost frame that is the user's own, None for none."""
    for frame in getattr(traceback, "frames", None) or ():
        if not frame.file_name.startswith(_libraries()) and Path(frame.file_name).is_file():
            return f"{Path(frame.file_name).name}:{frame.line_num}"
    return None


@functools.cache
def _libraries() -> tuple[str, ...]:
    folders = [Path(module.__file__ or "").parent for module in (jax, flax, optax)]
    folders += [_OURS, Path(sysconfig.get_path("stdlib")), Path(contextlib.__file__).parent]
    return tuple(f"{folder}/" for folder in dict.fromkeys(folders))

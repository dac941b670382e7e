"""What does a compiled program send between devices, and what of its inputs is in it?"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
"""Operations that move data between devices."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+?)(\d*)(?:e\w+)?\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        name: Unique in the program.
        computation: Which computation it stands in.
        type: The type of its result, as text.
        opcode: What it does.
        operands: Names of what it takes.
        called: Computations that it calls.
        index: Of a parameter its number, else -1.
        label: What JAX calls it; of an input the path of the argument.
    """

    name: str
    computation: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    index: int
    label: str

    @property
    def kind(self) -> str | None:
        """One of ``KINDS``; None: nothing is sent."""
        opcode = self.opcode.removesuffix("-start")
        return opcode if opcode in KINDS else None

    @property
    def num_bytes(self) -> int:
        """Bytes of the result on one device."""
        return sum(size for _, size in arrays(self.type))


def arrays(text: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yields shape and bytes of the arrays of a type.

    Example:
        >>> list(arrays("(f32[2,3]{1,0}, pred[])"))
        [((2, 3), 24), ((), 1)]
    """
    for kind, bits, sizes in _ARRAY.findall(text):
        shape = tuple(int(size) for size in sizes.split(",") if size)
        width = {"pred": 1, "bf16": 2}.get(kind) or max(int(bits or 8) // 8, 1)
        yield shape, math.prod(shape) * width


class Program:
    """A compiled program as its instructions.

    Args:
        text: What ``compiled.as_text()`` gives.
    """

    def __init__(self, text: str) -> None:
        self.instructions: dict[str, Instruction] = {}
        self._callers: dict[str, list[Instruction]] = defaultdict(list)
        self._entry, computation = "", ""
        for line in text.splitlines():
            if line and not line[0].isspace():
                if opened := _COMPUTATION.match(line):
                    computation = opened[1]
                    self._entry = computation if line.startswith("ENTRY") else self._entry
            elif found := _INSTRUCTION.match(line):
                self._add(computation, *found.groups())

    def _add(self, computation: str, name: str, kind: str, opcode: str, rest: str) -> None:
        inside, attributes = _split_at_closing(rest)
        branches = [part for group in _BRANCHES.findall(attributes) for part in group.split(",")]
        called = (*_CALLED.findall(attributes), *(part.strip(" %") for part in branches))
        label = re.search(r'op_name="([^"]*)"', attributes)
        instruction = Instruction(
            name,
            computation,
            kind,
            opcode,
            tuple(re.findall(r"%([\w.\-]+)", inside)),
            called,
            int(inside) if opcode == "parameter" else -1,
            label[1].replace("\\'", "'") if label else "",
        )
        self.instructions[name] = instruction
        for other in called:
            self._callers[other].append(instruction)

    def collectives(self, kind: str | None = None) -> list[Instruction]:
        """Returns the instructions that send data, of one kind or of all."""
        found = [one for one in self.instructions.values() if one.kind is not None]
        return [one for one in found if kind is None or one.kind == kind]

    def inputs_of(self, instruction: Instruction) -> set[str]:
        """Returns the labels of the program's inputs that a result was computed from."""
        seen: set[str] = set()
        waiting, labels = list(instruction.operands), set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.instructions:
                continue
            seen.add(name)
            one = self.instructions[name]
            if one.opcode != "parameter":
                waiting += one.operands
            elif one.computation == self._entry:
                labels.add(one.label)
            else:
                for caller in self._callers[one.computation]:
                    whole = caller.opcode in ("while", "conditional")
                    waiting += caller.operands if whole else caller.operands[one.index :][:1]
        return labels


def _split_at_closing(text: str) -> tuple[str, str]:
    depth = 1
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""

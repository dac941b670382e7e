"""What does a compiled program send between the devices? Read from its text, loop by loop."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
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
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_FUSED_SCATTER = "all-reduce-scatter"  # as the TPU's compiler calls its reduce-scatter


@dataclass(frozen=True)
class Collective:
    """What one run of a program sends by one kind of operation.

    Attributes:
        kind: One of ``all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute``.
        count: How often it is done; one that stands in a loop counts for each turn.
        num_bytes: Bytes of the results on one device, of all ``count`` together.
        exact: False where a loop's turns are not known; it then counts as one turn.
    """

    kind: str
    count: int
    num_bytes: int
    exact: bool = True


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        name: Unique in the program.
        computation: Which computation it stands in.
        type: The type of its result, as text.
        opcode: What it does.
        operands: Names of what it takes.
        called: Computations that it calls.
        index: Of a parameter its number, of an integer constant its value, else -1.
        attributes: What stands behind the operands.
    """

    name: str
    computation: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    index: int
    attributes: str

    @property
    def kind(self) -> str | None:
        """One of ``KINDS``; None: nothing is sent."""
        opcode = self.opcode.removesuffix("-start")
        if opcode == "all-reduce" and self.computation.startswith(_FUSED_SCATTER):
            return "reduce-scatter"
        return opcode if opcode in KINDS else None

    @property
    def label(self) -> str:
        """What JAX calls it; of an input the path of the argument."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the result on one device."""
        sizes = [size for _, size in arrays(self.type)]
        if self.opcode in ("all-gather-start", "collective-permute-start"):
            count = len(self.operands)  # the type names operands, results, and perhaps a context
            sizes = sizes[count : 2 * count]
        return sum(sizes)


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
        self.callers: dict[str, list[Instruction]] = defaultdict(list)
        self.entry, computation = "", ""
        for line in text.splitlines():
            if line and not line[0].isspace():
                if opened := _COMPUTATION.match(line):
                    computation = opened[1]
                    self.entry = computation if line.startswith("ENTRY") else self.entry
            elif found := _INSTRUCTION.match(line):
                self._add(computation, *found.groups())
        self._runs = {self.entry: (1, True)}

    def _add(self, computation: str, name: str, kind: str, opcode: str, rest: str) -> None:
        inside, attributes = _split_at_closing(rest)
        branches = [part for group in _BRANCHES.findall(attributes) for part in group.split(",")]
        called = (*_CALLED.findall(attributes), *(part.strip(" %") for part in branches))
        numbered = opcode in ("parameter", "constant") and inside.isdecimal()
        instruction = Instruction(
            name,
            computation,
            kind,
            opcode,
            tuple(re.findall(r"%([\w.\-]+)", inside)),
            called,
            int(inside) if numbered else -1,
            attributes,
        )
        self.instructions[name] = instruction
        for other in called:
            self.callers[other].append(instruction)

    def sending(self) -> list[Instruction]:
        """Returns the instructions that send data, each once.

        The TPU's compiler lays one operation out over several fusions, all with its channel.
        """
        found, seen = [], set()
        for one in self.instructions.values():
            if one.kind is None:
                continue
            channel = _CHANNEL.search(one.attributes)
            fused = any(caller.opcode == "fusion" for caller in self.callers[one.computation])
            if channel and fused:
                if channel[1] in seen:
                    continue
                seen.add(channel[1])
            found.append(one)
        return found

    def turns(self, loop: Instruction) -> int | None:
        """Returns how often a loop's body runs; None: the text does not say."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        tests = [
            one
            for one in self.instructions.values()
            if condition and one.computation == condition[1] and one.opcode == "compare"
        ]
        if len(tests) != 1 or "direction=LT" not in tests[0].attributes:
            return None
        limits = [self.instructions[name] for name in tests[0].operands]
        found = [one.index for one in limits if one.opcode == "constant" and one.index >= 0]
        return found[0] if len(found) == 1 else None  # JAX's loops count from 0

    def runs(self, computation: str) -> tuple[int, bool]:
        """Returns how often a computation runs, and whether all loops around it say their turns."""
        if computation not in self._runs:
            total, exact = 0, True
            for caller in self.callers[computation]:
                if caller.opcode in ("async-update", "async-done"):
                    continue  # they name what async-start has called
                outer, known = self.runs(caller.computation)
                turns = self.turns(caller) if caller.opcode == "while" else 1
                total += outer * (1 if turns is None else turns)
                exact = exact and known and turns is not None
            self._runs[computation] = total, exact
        return self._runs[computation]

    def bytes_of(self, instruction: Instruction) -> int:
        """Returns the bytes of what one device has when an instruction has run."""
        if instruction.kind == "reduce-scatter" and "all-reduce" in instruction.opcode:
            return sum(c.num_bytes for c in self.callers[instruction.computation][:1])
        return instruction.num_bytes


def collectives_of(text: str) -> tuple[Collective, ...]:
    """Returns what a compiled program sends between devices in one run, by kind.

    Args:
        text: What ``compiled.as_text()`` gives.

    Example:
        >>> import jax
        >>> collectives_of(jax.jit(lambda x: x + 1).lower(1.0).compile().as_text())
        ()
    """
    program = Program(text)
    found: dict[str, Collective] = {}
    for one in program.sending():
        kind = str(one.kind)
        before = found.get(kind, Collective(kind, 0, 0))
        count, exact = program.runs(one.computation)
        found[kind] = Collective(
            kind,
            before.count + count,
            before.num_bytes + count * program.bytes_of(one),
            before.exact and exact,
        )
    return tuple(found[kind] for kind in KINDS if kind in found)


def _split_at_closing(text: str) -> tuple[str, str]:
    depth = 1
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""

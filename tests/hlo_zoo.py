"""What of a compiled program's inputs is in what it sends between devices?"""

from xtrainer.parallel import collectives
from xtrainer.parallel.collectives import Instruction, arrays

__all__ = ["Instruction", "Program", "arrays"]


class Program(collectives.Program):
    """A compiled program whose collectives can be traced to its inputs."""

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
            elif one.computation == self.entry:
                labels.add(one.label)
            else:
                for caller in self.callers[one.computation]:
                    whole = caller.opcode in ("while", "conditional")
                    waiting += caller.operands if whole else caller.operands[one.index :][:1]
        return labels

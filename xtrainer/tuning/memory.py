"""How many bytes of a device does a step take? As the room of the steps says it."""

from xtrainer.step.memory import BATCHES_AHEAD, StepMemory, measure_memory

__all__ = ["BATCHES_AHEAD", "StepMemory", "measure_memory"]

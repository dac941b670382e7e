"""What do peers add? An adapter each, against a bare loop of the peer's own backend.

An adapter is imported in the process that measures it, and has ``measure(repeats) -> list[Row]``.
"""

CASE = "log every 50"
STEPS = 500
WIDTH, CLASSES, ROWS = 16, 10, 32
"""The tiny network of ``benchmarks.models.mlp_task``."""
LEARNING_RATE, EPSILON = 1e-3, 1e-8
"""Of Adam, as Optax and PyTorch have it."""

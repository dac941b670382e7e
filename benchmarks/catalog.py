"""Which workloads and which peers are there? Names only: nothing heavy is imported here."""

import importlib.util

WORKLOADS = {
    "mlp": "us a step of a tiny network: plain, progress bar, a log of every step, scanned steps",
    "gpt": "ms a step of a small transformer",
    "accumulate": "accumulation over 8 micro-batches against a hand-written scan: time and memory",
    "devices": "the tiny network and the transformer on eight devices",
    "leaves": "us a step with 10, 100 and 1000 parameter arrays",
    "guard": "the guard against numbers that are not finite, as a share of a step",
    "evaluation": "us a batch of an evaluation, without what is spent once",
    "checkpoint": "training time lost to a save, longest stall, restore: 100 MB and 1 GB",
    "start": "seconds from the shell to the first finished step, with and without compiled code",
}

PEERS = {
    "keras": ("keras", "jax"),
    "tunix": ("tunix", "jax"),
    "kauldron": ("kauldron", "jax"),
    "levanter": ("levanter", "jax"),
    "lightning": ("lightning", "torch"),
    "accelerate": ("accelerate", "torch"),
}
"""What must be installed for each peer."""

REPEATS = {"mlp": 25, "leaves": 15, "evaluation": 15}
"""Default repeats of the workloads of microseconds; others take :data:`OTHER_REPEATS`."""

OTHER_REPEATS = 7


def missing_packages(peer: str) -> list[str]:
    """Returns what a peer needs and what is not installed; nothing is imported for it."""
    return [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]

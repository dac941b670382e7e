"""What makes two runs of one program the same, bit for bit?

On CPUs and TPUs a compiled step gives the same numbers each time. On GPUs some operations add up in
the order in which threads happen to come (a scatter, the gradient of an embedding), and the
compiler chooses among algorithms by measuring them. Random numbers of JAX come from the seed in any
case; those of Python and NumPy only where something draws them, such as a loader of the user's.
"""

import random
import re

import numpy as np

GPU_OPTIONS = {"xla_gpu_deterministic_ops": True}
"""Options of the compiler; as such, and not in ``XLA_FLAGS``, which is read once in a process."""

_CONTRARY = re.compile(
    r"--(?:xla_gpu_deterministic_ops|xla_gpu_exclude_nondeterministic_ops)=(?:false|0)\b", re.I
)


def compiler_options(deterministic: bool, platform: str) -> dict[str, bool] | None:
    """Returns the options that programs are compiled with; None for those of the compiler.

    Args:
        deterministic: What was asked for.
        platform: Of the devices.

    Example:
        >>> compiler_options(True, "gpu"), compiler_options(True, "cpu")
        ({'xla_gpu_deterministic_ops': True}, None)
    """
    on_gpu = platform in ("gpu", "cuda", "rocm")
    return dict(GPU_OPTIONS) if deterministic and on_gpu else None


def flag_problems(flags: str) -> list[str]:
    """Returns a sentence for each flag that says the contrary of ``deterministic=True``.

    Args:
        flags: The variable ``XLA_FLAGS``.
    """
    return [
        f"deterministic: found True with {flag} in XLA_FLAGS, which asks for the contrary. Remove "
        "one of them."
        for flag in _CONTRARY.findall(flags)
    ]


def seed_generators(seed: int, step: int) -> None:
    """Seeds the generators that Python and NumPy share within a process, for a run from a step on.

    Args:
        seed: Of the run.
        step: At which it begins or goes on, so that what follows is no repetition.
    """
    random.seed(f"{seed}/{step}")
    np.random.seed((seed, step))

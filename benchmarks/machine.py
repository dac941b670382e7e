"""On what was measured? Versions of packages, and the kind of device."""

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = (
    "xtrainer",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorboardX",
    "tqdm",
    "keras",
    "google-tunix",
    "kauldron",
    "levanter",
    "haliax",
    "torch",
    "lightning",
    "accelerate",
)


def describe_machine(backend: str = "jax") -> dict[str, Any]:
    """Returns versions, processors and devices of this process.

    Args:
        backend: ``"jax"`` or ``"torch"``: whose devices are asked for.
    """
    kinds: list[str] = []
    if backend == "jax":
        import jax

        kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    else:
        import torch

        count = torch.cuda.device_count()
        kinds = [torch.cuda.get_device_name(i) for i in range(count)] or ["cpu"]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "devices": kinds,
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, None where there is none.

    Example:
        >>> version_of("a-package-that-nobody-made") is None
        True
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""How fast can a device be? Dense bfloat16 operations a second, by the name JAX gives it."""

import re

_TERA = 1e12

_PEAKS = (
    # One device of JAX is a chip, but a core (of two to a chip) for v2, v3 and 7x.
    (r"TPU v2", 23.0),
    (r"TPU v3", 61.5),
    (r"TPU v4", 275.0),
    (r"TPU v4 lite", 138.0),
    (r"TPU v5( lite|e)", 197.0),
    (r"TPU v5p?", 459.0),
    (r"TPU v6( lite|e)", 918.0),
    (r"TPU ?(v7|7)x?", 1153.5),
    # The cards that have no bfloat16 (V100, T4): float16.
    (r".*\bV100S.*", 130.0),
    (r".*\bV100.*PCI.*", 112.0),
    (r".*\bV100.*", 125.0),
    (r".*\bT4\b.*", 65.0),
    (r".*\bA100\b.*", 312.0),
    (r".*\bA800\b.*", 312.0),
    (r".*\bA30\b.*", 165.0),
    (r".*\bA40\b.*", 149.7),
    (r".*\bA10G\b.*", 70.0),
    (r".*\bA10\b.*", 125.0),
    (r".*\bL4\b.*", 121.0),
    (r".*\bL40S\b.*", 362.0),
    (r".*\bL40\b.*", 181.0),
    (r".*\bH100 NVL\b.*", 835.0),
    (r".*\bH100 PCIe\b.*", 756.0),
    (r".*\bH200 NVL\b.*", 835.0),
    (r".*\b(H100|H800|H200|GH200)\b.*", 989.0),
    (r".*\bB100\b.*", 1750.0),
    (r".*\bB200\b.*", 2250.0),
    (r".*\bGB200\b.*", 2500.0),
)
"""Pattern of ``device_kind`` and tera-operations a second; the first that matches all of it."""


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 operations a second of one device; None where it is not known.

    The figures are those of the vendors, without sparsity: for TPUs Google's "TPU architecture"
    pages (cloud.google.com/tpu/docs, one for each version), for NVIDIA the data sheets of V100, T4,
    A10, A30, A40, A100, L4, L40, L40S, H100, H200 and HGX/GB200 (where a sheet gives the figure
    with sparsity, half of it), for the A10G that of AWS's G5 instances. No device reaches them.

    Args:
        device_kind: ``jax.Device.device_kind``.

    Example:
        >>> peak_flops("NVIDIA A100-SXM4-80GB"), peak_flops("TPU v5 lite"), peak_flops("cpu")
        (312000000000000.0, 197000000000000.0, None)
    """
    for pattern, tera in _PEAKS:
        if re.fullmatch(pattern, device_kind):
            return tera * _TERA
    return None

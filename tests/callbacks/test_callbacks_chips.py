"""Are devices known by the names that JAX gives them?"""

import jax
import pytest

from xtrainer.callbacks.chips import peak_flops


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v2", 23),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v4 lite", 138),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("TPU7x", 1153.5),
        ("TPU v7x", 1153.5),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla T4", 65),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_a_chip_has_the_peak_of_its_data_sheet(kind: str, tera: float) -> None:
    assert peak_flops(kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("kind", ["cpu", "TPU v9", "NVIDIA GeForce GTX 1080", "", "NVIDIA H1000"])
def test_of_another_device_nothing_is_claimed(kind: str) -> None:
    assert peak_flops(kind) is None


def test_the_devices_of_the_tests_have_no_peak() -> None:
    assert peak_flops(jax.devices()[0].device_kind) is None

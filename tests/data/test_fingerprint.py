"""Are arrays told from others by a few of their rows?"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.data import ArrayLoader, Batch, GrainLoader, LoaderSource, array_fingerprint
from xtrainer.errors import LoaderError

MAKE = """
import numpy as np
from xtrainer.data import array_fingerprint
x = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32)
print(array_fingerprint({"x": x, "y": np.arange(1000)}))
"""


def arrays() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32)
    return {"x": x, "y": np.arange(1000)}


def test_it_is_one_text_in_every_process_and_at_every_start() -> None:
    done = subprocess.run([sys.executable, "-c", MAKE], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == array_fingerprint(arrays())


def test_it_is_that_of_a_map_of_the_same_file(tmp_path: Path) -> None:
    x = arrays()["x"]
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert array_fingerprint(mapped) == array_fingerprint(x)
    strided = np.repeat(x, 2, axis=0)[::2]
    assert array_fingerprint(strided) == array_fingerprint(x)
    assert array_fingerprint(np.asfortranarray(x)) == array_fingerprint(x)


CHANGES: dict[str, Any] = {
    "first row": lambda a: a["x"].__setitem__(0, 1.0),
    "last row": lambda a: a["y"].__setitem__(-1, 7),
    "other order": lambda a: a.update(x=a["x"][::-1]),
    "shifted": lambda a: a.update(x=np.roll(a["x"], 1, axis=0)),
    "columns": lambda a: a.update(x=np.roll(a["x"], 1, axis=1)),
    "scaled": lambda a: a.update(x=a["x"] * 2),
    "dtype": lambda a: a.update(y=a["y"].astype(np.uint64)),
    "fewer": lambda a: a.update({name: leaf[:-1] for name, leaf in a.items()}),
    "renamed": lambda a: a.update(z=a.pop("x")),
    "shape": lambda a: a.update(x=a["x"][:, :, None]),
    "nan": lambda a: a["x"].__setitem__(0, np.nan),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_arrays_have_another(change: str) -> None:
    changed = arrays()
    CHANGES[change](changed)
    assert array_fingerprint(changed) != array_fingerprint(arrays())


def test_every_part_of_long_rows_is_looked_at() -> None:
    images = np.zeros((64, 128, 128, 3), np.float32)
    before = array_fingerprint(images)
    found = 0
    for line in range(0, 128, 8):
        changed = images.copy()
        changed[:, line : line + 8] = 1.0
        found += array_fingerprint(changed) != before
    assert found == 16


@pytest.mark.parametrize(
    "leaf",
    [
        np.zeros((5, 0), np.float32),
        np.array(["a", "bc"]),
        np.array([b"a", b"bc"]),
        np.array([object(), object()]),
        np.zeros(4, bool),
        np.zeros(3, jnp.bfloat16),
        np.zeros(3, [("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(1, np.complex64),
    ],
    ids=lambda leaf: str(leaf.dtype),
)
def test_arrays_of_every_kind_have_one(leaf: np.ndarray) -> None:
    text = array_fingerprint(leaf)
    assert text == array_fingerprint(leaf.copy()) and len(text) == 32


def test_a_map_of_a_file_that_fits_in_no_memory_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.touch()
    os.truncate(path, 2**40)  # a hole, of which every page that is read takes memory
    mapped = np.memmap(path, np.float32, "r", shape=(2**26, 2**12))
    loader = ArrayLoader({"x": mapped}, batch_size=2)
    before = _resident_bytes()
    assert loader.fingerprint().startswith("67108864 rows, ")
    assert _resident_bytes() - before < 2**25


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_loaders_say_what_they_know_and_are_asked_once(monkeypatch: Any) -> None:
    loader = ArrayLoader(Batch(inputs=np.arange(8), targets=np.arange(8)), 2, shuffle=True)
    source = LoaderSource(loader, "train")
    first = source.fingerprint
    assert first is not None and first.startswith("8 rows, ")
    monkeypatch.setattr("xtrainer.data.arrays.array_fingerprint", lambda arrays: 1 / 0)
    assert source.fingerprint == loader.fingerprint() == first
    assert loader.get_state() == {"pass": 0, "batch": 0}
    assert LoaderSource(GrainLoader(range(8), 2), "train").fingerprint == "8 samples"
    assert LoaderSource([np.zeros(2)], "train").fingerprint is None


def test_a_fingerprint_that_is_no_text_is_refused() -> None:
    class Strange(list):
        def fingerprint(self) -> int:
            return 3

    class Named(list):
        fingerprint = "an attribute of another meaning"

    with pytest.raises(LoaderError, match="'train' loader gave a int, expected a text"):
        assert LoaderSource(Strange([np.zeros(2)]), "train").fingerprint
    assert LoaderSource(Named([np.zeros(2)]), "train").fingerprint is None

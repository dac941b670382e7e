"""Images, histograms and tables are brought into one form, or refused with what was found."""

import io
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xtrainer.errors import MetricError
from xtrainer.loggers.media import (
    encode_png,
    file_name,
    host_histogram,
    host_image,
    host_table,
    table_csv,
    table_markdown,
)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_has_the_pixels_of_its_image(channels: int) -> None:
    pixels = np.random.default_rng(channels).integers(0, 256, (5, 7, channels), np.uint8)
    found = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    "image",
    [
        np.array([[0, 255]], np.uint8),
        np.array([[0.0, 1.0]], np.float64),
        np.array([[[0.0], [1.0]]], np.float16),
        jnp.array([[0.0, 1.0]], jnp.bfloat16),
        [[False, True]],
    ],
    ids=["uint8", "float64", "channel", "bfloat16", "bool"],
)
def test_every_kind_of_image_has_one_form(image: Any) -> None:
    found = host_image("x", image)
    assert found.dtype == np.uint8 and found.tolist() == [[[0], [255]]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 2, 2)), r"the shape \(2, 2, 2\), expected \(height, width\)"),
        (np.zeros((4, 3, 3, 3)), "Log one image of a batch at a time"),
        (np.zeros((0, 3)), r"the shape \(0, 3\)"),
        (np.full((2, 2), 1.5), "values from 1.5 to 1.5, expected uint8, or floats from 0 to 1"),
        (np.full((2, 2), np.nan), "values from nan to nan"),
        (np.zeros((2, 2), np.int32), "the dtype int32, expected uint8"),
        ([[1.0], [1.0, 2.0]], "is a list, expected an array of numbers"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        host_image("x", image)


@pytest.mark.parametrize(
    ("counts", "edges", "message"),
    [
        ([1, 2], [0, 1], r"counts of shape \(2,\) and edges of shape \(2,\)"),
        ([], [0], r"counts of shape \(0,\)"),
        ([-1], [0, 1], "negative or non-finite counts"),
        ([1], [1, 0], "edges that do not rise"),
        ([1], [0, np.inf], "finite edges"),
        (["a"], [0, 1], "expected .* numbers, as numpy.histogram gives"),
    ],
)
def test_what_is_no_histogram_is_refused(counts: Any, edges: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        host_histogram("x", counts, edges)


def test_a_histogram_of_numpy_is_one() -> None:
    values = np.random.default_rng(0).normal(size=100)
    counts, edges = np.histogram(values, bins=7)
    found = host_histogram("x", counts, edges)
    assert [part.tolist() for part in found] == [counts.tolist(), edges.tolist()]


def test_a_table_has_plain_values() -> None:
    rows = [(np.float32(0.5), jnp.int32(2), None, True, "x")]
    _, found = host_table("t", list("abcde"), rows)
    assert found == [[0.5, 2, None, True, "x"]]
    assert [type(cell) for cell in found[0][:2]] == [float, int]


@pytest.mark.parametrize("cell", [[1], {"a": 1}, np.zeros(2), object()])
def test_a_cell_that_is_neither_text_nor_number_is_refused(cell: Any) -> None:
    with pytest.raises(MetricError, match="'t' has a cell .*expected a text or a number"):
        host_table("t", ["a"], [[cell]])


def test_tables_as_texts_keep_their_cells() -> None:
    rows = [["a,b", 1], [None, "x|y\nz"]]
    assert table_csv(["p", "q"], rows) == 'p,q\n"a,b",1\n,"x|y\nz"\n'
    assert table_markdown(["p", "q"], rows).splitlines()[2:] == ["| a,b | 1 |", "|  | x\\|y z |"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | st.sampled_from(["../x", "/etc/passwd", "..", "a\x00b", ""]))
def test_a_name_never_leads_out_of_its_folder(key: str) -> None:
    name = file_name(key)
    assert 0 < len(name) <= 100 and not set(name) & set("./\\\0")

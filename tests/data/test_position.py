import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrainer.data import LoaderPosition
from xtrainer.errors import CheckpointError, LoaderError

_STATE = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.booleans(),
    lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=3), node),
    max_leaves=5,
)


@given(st.integers(0, 9), st.integers(0, 2**40), _STATE)
def test_position_round_trips_through_json(pass_index, batches, state):
    position = LoaderPosition(pass_index, batches, state)
    assert LoaderPosition.from_json(json.loads(json.dumps(position.to_json()))) == position


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_counts_must_be_integers_from_zero(value):
    with pytest.raises(LoaderError, match=r"batches: found .*expected an integer >= 0"):
        LoaderPosition(0, value)
    with pytest.raises(LoaderError, match="pass_index"):
        LoaderPosition(value, 0)


@pytest.mark.parametrize(
    "data",
    [None, 3, [], {}, {"pass_index": 0, "batches": 1}, {"pass_index": 0, "batches": 1, "other": 2}],
)
def test_other_json_is_a_checkpoint_error(data):
    with pytest.raises(CheckpointError, match="expected the keys"):
        LoaderPosition.from_json(data)


def test_wrong_count_in_json_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match="batches: found -2"):
        LoaderPosition.from_json({"pass_index": 0, "batches": -2, "state": None})

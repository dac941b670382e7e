"""Is each loader read through one source, put where a checkpoint says it was?"""

from typing import Any

import numpy as np
import pytest

from xtrainer.data import ArrayLoader, LoaderPosition, LoaderSource
from xtrainer.errors import CheckpointError, LoaderError
from xtrainer.trainer.shared import own_data
from xtrainer.trainer.sources import Sources
from xtrainer.types import DataShard


def loader(rows: int = 8) -> ArrayLoader:
    return ArrayLoader(np.arange(rows), batch_size=2)


def first(source: LoaderSource) -> Any:
    return source.next_host()[0].tolist()


def test_a_loader_keeps_its_source() -> None:
    sources, data = Sources(), loader()
    source = sources.of(data, "train")
    assert sources.of(data, "train") is source
    assert sources.of(source, "train") is source


def test_another_loader_gets_a_source_of_its_own() -> None:
    sources = Sources()
    source = sources.of(loader(), "train")
    assert sources.of(loader(), "train") is not source


def test_what_was_read_ahead_of_an_iterator_is_kept_for_the_next_call() -> None:
    sources, data = Sources(), iter([np.arange(2), np.arange(2, 4)])
    sources.of(data, "train").peek()
    assert first(sources.of(data, "train")) == [0, 1]


def test_sets_are_named_by_their_key() -> None:
    found = Sources().of_sets({"a": loader(), 3: loader()}, "val")
    assert {key: source.name for key, source in found.items()} == {"a": "val/a", "3": "val/3"}
    assert list(Sources().of_sets(loader(), "val")) == [None]
    assert Sources().of_sets(None, "val") == {}


def test_what_cannot_be_iterated_is_no_loader() -> None:
    with pytest.raises(LoaderError, match="Found a int as the 'train' loader"):
        Sources().of(3, "train")  # type: ignore[arg-type]


def test_the_training_position_is_kept_and_others_that_have_a_state() -> None:
    sources = Sources()
    for name, data in (("train", [np.arange(2)]), ("val", [np.arange(2)]), ("test", loader())):
        first(sources.of(data, name))
    assert set(sources.positions()) == {"train", "test"}


def test_a_restored_training_position_waits_for_the_loader() -> None:
    sources, data = Sources(), loader()
    sources.restore_later({"train": LoaderPosition(0, 2, {"pass": 0, "batch": 2})}, 1)
    assert first(sources.of(data, "val")) == [0, 1]
    assert first(sources.of(loader(), "train")) == [4, 5]
    assert first(sources.of(loader(), "train")) == [0, 1]  # it was taken


def test_a_restored_evaluation_position_waits_for_nobody() -> None:
    sources = Sources()
    sources.restore_later({"val": LoaderPosition(0, 2, {"pass": 0, "batch": 2})}, 1)
    assert first(sources.of(loader(), "val")) == [0, 1]


def test_a_given_loader_is_put_there_at_once() -> None:
    sources, data = Sources(), loader()
    sources.restore_later({"train": LoaderPosition(0, 3, {"pass": 0, "batch": 3})}, 1)
    sources.restore(data, "train", LoaderPosition(0, 1, {"pass": 0, "batch": 1}), 1)
    assert data.get_state() == {"pass": 0, "batch": 1}
    assert first(sources.of(data, "train")) == [2, 3]


def test_a_loader_with_shards_takes_the_position_of_another_number_of_processes() -> None:
    sources, data = Sources(), loader()
    sources.restore_later({"train": LoaderPosition(0, 2, {"pass": 0, "batch": 2})}, 4)
    assert sources.of(data, "train").position.batches == 2


def test_a_loader_without_shards_refuses_the_position_of_another_number_of_processes() -> None:
    sources, data = Sources(), [next(iter(loader()))]
    sources.restore_later({"train": LoaderPosition(0, 1)}, 4)
    with pytest.raises(LoaderError, match="saved by a run of 4 processes, and this one has 1"):
        sources.of(data, "train")
    with pytest.raises(LoaderError, match="without set_shard"):
        sources.restore(data, "train", LoaderPosition(0, 1), 4)


@pytest.mark.parametrize("said", [3, [], ["a"], {"per_process": 3}, {"per_process": [4]}])
def test_data_that_no_loader_has_said_are_an_error(said: Any) -> None:
    with pytest.raises(CheckpointError, match="as the data of the 'train' loader"):
        own_data({"data": {"train": said}})


def test_data_are_those_of_this_process_where_all_have_said_theirs() -> None:
    data: dict[str, Any] = {
        "one": "a",
        "each": {"per_process": ["b"]},
        "more": {"per_process": ["c", "d"]},
    }
    data["none"] = {"per_process": [None]}
    assert own_data({"data": data}) == {"one": "a", "each": "b"}
    assert own_data({}) == {}


def test_loaders_are_told_their_part_where_there_are_several() -> None:
    sources, data = Sources(), loader()
    sources.shard = DataShard(1, 2)
    assert first(sources.of(data, "train")) == [1]

"""Which sizes are tried, and does the search end whatever fits?"""

import pytest

from xtrainer.errors import BatchError
from xtrainer.trainer.batch_size import BatchSizeTable, BatchTrial, find_batch_size

INFINITE = 10**9


def search(limit: int, largest: int | None, first: int = 16, unit: int = 1, **kwargs: int):
    """Returns the table of a machine that fits ``limit`` rows and is faster the more it has."""
    return find_batch_size(
        lambda rows: BatchTrial(rows, None, float(rows), rows <= limit),
        first,
        unit,
        largest,
        **kwargs,
    )


def rows(table: BatchSizeTable) -> list[int]:
    return [trial.rows for trial in table.trials]


@pytest.mark.parametrize(
    ("limit", "examples", "tried", "best"),
    [
        (0, 1, [1], None),
        (0, 5, [5, 2, 1], None),
        (0, 1000, [16, 8, 4, 2], None),
        (7, 1, [1], 1),
        (7, 5, [5], 5),
        (7, 1000, [16, 8, 4], 4),
        (64, 1, [1], 1),
        (64, 5, [5], 5),
        (64, 1000, [16, 32, 64, 128], 64),
        (INFINITE, 1, [1], 1),
        (INFINITE, 5, [5], 5),
        (INFINITE, 1000, [16, 32, 64, 128, 256, 512, 1000], 1000),
    ],
)
def test_the_search_ends_whatever_fits_and_however_few_the_data_are(
    limit: int, examples: int, tried: list[int], best: int | None
) -> None:
    table = search(limit, examples)
    assert rows(table) == tried
    if best is not None:
        assert table.best.rows == best
    else:
        with pytest.raises(BatchError, match=f"No batch size fits, down to {tried[-1]} rows"):
            _ = table.best


def test_without_an_end_of_the_data_the_number_of_trials_ends_it() -> None:
    assert rows(search(INFINITE, None, max_trials=4)) == [16, 32, 64, 128]


@pytest.mark.parametrize(("halving_limit", "tried"), [(0, [16]), (1, [16, 8]), (9, [16, 8, 4])])
def test_a_size_is_halved_as_often_as_is_allowed_and_never_below_the_smallest(
    halving_limit: int, tried: list[int]
) -> None:
    assert rows(search(0, 1000, unit=4, halving_limit=halving_limit)) == tried


def test_every_size_is_a_multiple_of_what_devices_and_micro_batches_need() -> None:
    assert rows(search(INFINITE, 100, first=17, unit=6)) == [12, 24, 48, 96]
    assert rows(search(13, 100, first=40, unit=6)) == [36, 18, 6]
    assert rows(search(INFINITE, 100, first=1, unit=6, max_trials=1)) == [6]


def test_data_of_less_than_the_smallest_batch_are_refused() -> None:
    with pytest.raises(BatchError, match="at most 5 rows for a batch, expected 8 or a multiple"):
        search(INFINITE, 5, unit=8)


def test_the_fastest_is_the_best_and_not_the_largest() -> None:
    speeds = {16: 50.0, 32: 80.0, 64: 80.0, 128: 70.0}
    better = []
    table = find_batch_size(
        lambda rows: BatchTrial(rows, 10, speeds[rows]), 16, 1, 128, on_improvement=better.append
    )
    assert table.best.rows == 32
    assert [trial.rows for trial in better] == [16, 32]


def test_what_does_not_fit_is_no_improvement() -> None:
    better: list[BatchTrial] = []

    def trial(rows: int) -> BatchTrial:
        return BatchTrial(rows, None, None, rows <= 8, "" if rows <= 8 else "out of memory")

    table = find_batch_size(trial, 32, 1, 100, on_improvement=better.append)
    assert [one.rows for one in better] == [8]
    assert str(table).splitlines()[1:] == [
        "     32                  ?           -  out of memory",
        "     16                  ?           -  out of memory",
        "      8                  ?           -  best",
    ]

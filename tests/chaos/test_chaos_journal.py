"""Does the harness itself tell what a kill has cost, and what should not have been?"""

from typing import Any

import chaos_zoo
import pytest
from chaos_zoo import Death

FIRST, SECOND = Death("record:2", 1, 0.0), Death("start:1.0", 2, 0.0)
INTERVAL = 5


def lines(pid: int, *events: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"pid": pid, "what": what, "step": step} for what, step in events]


SAVED = (("training", 0), ("step", 5), ("begun", 5), ("record", 6), ("committed", 6))


@pytest.mark.parametrize(
    ("killed", "resumed", "lost", "limit"),
    [
        ((*SAVED, ("step", 9)), 5, 4, 5),
        ((*SAVED, ("step", 10), ("begun", 10), ("step", 13)), 5, 8, 8),
        ((*SAVED, ("step", 10), ("begun", 10), ("step", 13), ("record", 13)), 10, 3, 8),
        ((*SAVED, ("step", 10), ("begun", 10), ("step", 13), ("record", 13)), 5, 8, 8),
        ((("training", 0), ("step", 3)), 0, 3, 5),
    ],
)
def test_lost_steps_are_counted(killed: Any, resumed: int, lost: int, limit: int) -> None:
    journal = lines(1, *killed) + lines(3, ("training", resumed))
    kills, problems = chaos_zoo.lost_work(journal, [FIRST], INTERVAL)
    assert [(kill.lost, kill.limit) for kill in kills] == [(lost, limit)]
    assert problems == []


@pytest.mark.parametrize(
    ("killed", "resumed", "said"),
    [
        ((*SAVED, ("step", 9)), 0, "went on from 0, expected 5"),
        ((*SAVED, ("step", 9)), 6, "went on from 6, expected 5"),
        ((*SAVED, ("step", 11)), 5, "lost 6 steps, expected at most 5"),
        ((*SAVED, ("step", 10), ("begun", 10), ("step", 16)), 5, "lost 11 steps"),
        ((*SAVED, ("step", 10), ("begun", 10)), 10, "went on from 10, expected 5"),
    ],
)
def test_what_should_not_have_been_is_told(killed: Any, resumed: int, said: str) -> None:
    journal = lines(1, *killed) + lines(3, ("training", resumed))
    problems = chaos_zoo.lost_work(journal, [FIRST], INTERVAL)[1]
    assert said in " ".join(problems)


def test_a_start_that_did_not_come_to_training_has_lost_nothing() -> None:
    journal = lines(1, *SAVED, ("step", 8)) + lines(2) + lines(3, ("training", 5))
    kills, problems = chaos_zoo.lost_work(journal, [FIRST, SECOND], INTERVAL)
    assert [kill.lost for kill in kills] == [3, 0]
    assert problems == []


def test_a_kill_that_nothing_came_after_is_told() -> None:
    problems = chaos_zoo.lost_work(lines(1, *SAVED), [FIRST], INTERVAL)[1]
    assert problems == ["record:2: no start has come to train after it"]


def test_a_row_that_differs_is_told() -> None:
    want = {"params": "a", "rows": [["train", 1], ["train", 2]]}
    assert chaos_zoo.differences(want, want) == []
    doubled = {**want, "rows": [*want["rows"], ["train", 2]]}
    assert "3 rows, expected 2" in chaos_zoo.differences(want, doubled)[0]
    assert chaos_zoo.differences(want, {**want, "params": "b"}) == ["params: b, expected a"]

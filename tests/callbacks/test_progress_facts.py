"""Rates and the time left, with a clock that is set by hand."""

import pytest

from xtrainer.callbacks.progress_facts import Facts, Pace, duration, short


def walked(*looks: tuple[float, int, bool], step: int = 0) -> Pace:
    """Returns a pace that has looked at (seconds, step, whether it trains)."""
    pace = Pace(step=step, now=0.0)
    for now, at, trains in looks:
        pace.look(now, at, trains)
    return pace


def test_there_is_no_rate_before_the_second_step() -> None:
    pace = walked((30.0, 0, True), (60.0, 1, True))
    assert pace.steps_per_s() is None and pace.left_s(10) is None


def test_the_time_until_the_first_step_does_not_count() -> None:
    pace = walked((60.0, 1, True), (60.5, 2, True), (61.0, 3, True))
    assert pace.steps_per_s() == pytest.approx(2.0)


def test_a_run_that_goes_on_counts_its_own_steps_alone() -> None:
    pace = walked((10.0, 1001, True), (11.0, 1003, True), (12.0, 1005, True), step=1000)
    assert pace.steps_per_s() == pytest.approx(2.0)
    assert pace.left_s(1015) == pytest.approx(5.0)


def test_an_evaluation_is_no_time_of_training_but_is_to_be_expected_again() -> None:
    pace = walked(
        (1.0, 1, True), (2.0, 2, True), (3.0, 3, True), (3.0, 3, False), (7.0, 3, False),
        (8.0, 4, True), (9.0, 5, True),
    )  # fmt: skip
    assert pace.steps_per_s() == pytest.approx(1.0)
    assert pace.left_s(15) == pytest.approx(10.0 * (1.0 + 4.0 / 4.0))


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    slow = [(float(second), second, True) for second in range(1, 60)]
    fast = [(59.0 + second, 59 + 10 * second, True) for second in range(1, 60)]
    assert walked(*slow).steps_per_s() == pytest.approx(1.0)
    assert walked(*slow, *fast).steps_per_s() == pytest.approx(10.0)


def test_steps_of_minutes_have_a_rate_too() -> None:
    pace = walked(*((120.0 * step, step, True) for step in range(1, 5)))
    assert pace.steps_per_s() == pytest.approx(1 / 120)


def test_a_step_that_does_not_end_slows_the_rate() -> None:
    looks = [(1.0, 1, True), (2.0, 2, True), (3.0, 3, True)]
    assert walked(*looks, (4.0, 3, True)).steps_per_s() == pytest.approx(1.0)
    assert walked(*looks, (10.0, 3, True)).steps_per_s() == pytest.approx(2 / 6)


def test_after_a_return_to_a_checkpoint_the_rate_begins_anew() -> None:
    looks = [(1.0, 100, True), (2.0, 200, True), (3.0, 50, True)]
    assert walked(*looks).steps_per_s() is None
    assert walked(*looks, (4.0, 52, True), (5.0, 54, True)).steps_per_s() == pytest.approx(2.0)


def test_nothing_is_left_after_the_last_step() -> None:
    pace = walked((1.0, 1, True), (2.0, 2, True))
    assert pace.left_s(2) is None and pace.left_s(None) is None


def test_losses_come_first_and_few_metrics_are_shown() -> None:
    metrics = {"a": 1.0, "b": 2.0, "c": 3.0, "time_s": 9.0, "val_loss": 0.5, "loss": 0.25}
    assert Facts(validation=(10, metrics)).validated() == [
        "validation at step 10: val_loss 0.5", "loss 0.25", "a 1", "b 2",
    ]  # fmt: skip


def test_rates_have_the_unit_beside_them() -> None:
    facts = Facts(epoch=2, loss=1.5, steps_per_s=0.5, examples_per_s=32.0, tokens_per_s=2.5e6)
    assert facts.newest() == [
        "epoch 2", "loss 1.5", "0.5 steps/s", "32 examples/s", "2.50M tokens/s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3600.0, "1:00 h"), (90000.0, "1 d 1 h")],
)
def test_times_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("rate", "said"),
    [(0.5, "0.5"), (99.94, "99.9"), (9999.0, "9,999"), (12345.0, "12.3k"), (123456.0, "123k"),
     (1.5e6, "1.50M"), (2e12, "2e+03G")],
)  # fmt: skip
def test_rates_are_short(rate: float, said: str) -> None:
    assert short(rate) == said

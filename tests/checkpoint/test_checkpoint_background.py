"""Is what runs in the background done in order, and never waited for without a bound?"""

import threading

import pytest

from xtrainer.checkpoint.background import Background


def test_one_thing_is_done_after_the_other_in_one_daemon_thread():
    background, seen = Background("one-by-one"), []

    def work(number):
        seen.append((number, threading.current_thread().name, threading.current_thread().daemon))
        return number

    done = [background.submit(work, number) for number in range(5)]
    assert [one.result(10) for one in done] == [0, 1, 2, 3, 4]
    assert seen == [(number, "one-by-one", True) for number in range(5)]
    assert background.close(10)


def test_an_error_is_raised_where_the_result_is_asked_for_and_the_next_call_is_made():
    background = Background("failing")
    failed, fine = background.submit(int, "x"), background.submit(int, "3")
    with pytest.raises(ValueError, match="invalid literal"):
        failed.result(10)
    assert fine.result(10) == 3
    assert background.close(10)


def test_closing_waits_for_what_was_asked_for_and_not_for_ever():
    background, may_end = Background("stuck"), threading.Event()
    background.submit(may_end.wait, 60)
    assert not background.close(0.05)
    may_end.set()
    assert background.close(10)


def test_what_was_never_used_has_no_thread():
    before = threading.active_count()
    assert Background("unused").close(0.0)
    assert threading.active_count() == before

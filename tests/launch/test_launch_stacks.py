"""Do the stacks show every thread, where it is, and none of its values?"""

import threading
from collections.abc import Iterator

import pytest

from xtrainer.launch.stacks import stack_modules, stacks, stacks_text
from xtrainer.launch.waits import within

SECRET = "a value that nobody should read"


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    """A thread that waits, called ``waits-here``."""
    may_end, waits = threading.Event(), threading.Event()

    def wait_here(value: str) -> None:
        kept = value * 2
        waits.set()
        may_end.wait(60)
        assert kept

    thread = threading.Thread(target=wait_here, args=(SECRET,), name="waits-here")
    thread.start()
    waits.wait(60)
    yield thread
    may_end.set()
    thread.join(60)


def test_every_thread_is_shown_with_the_line_that_it_is_at(waiting: threading.Thread) -> None:
    found = stacks()
    assert len(found) == threading.active_count()
    lines = found[f"waits-here ({waiting.ident})"]
    assert any(", in wait_here: may_end.wait(60)" in line for line in lines)
    assert lines[-1].split(":")[0].endswith("threading.py")


def test_no_value_of_a_variable_is_shown(waiting: threading.Thread) -> None:
    assert SECRET not in stacks_text(stacks())


def test_one_thread_is_first_and_the_own_one_last(waiting: threading.Thread) -> None:
    names = list(stacks(first=waiting.ident))
    assert names[0].startswith("waits-here")
    assert names[-1].startswith(threading.current_thread().name)


def test_the_modules_of_a_thread_are_known_and_one_that_is_gone_has_none(
    waiting: threading.Thread,
) -> None:
    assert waiting.ident is not None
    modules = stack_modules(waiting.ident)
    assert modules[0] == "threading"
    assert __name__ in modules
    assert stack_modules(-1) == []


def test_what_takes_too_long_is_left_behind(waiting: threading.Thread) -> None:
    assert within(5.0, lambda: None)
    assert not within(0.05, waiting.join)

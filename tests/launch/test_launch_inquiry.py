"""Do all processes that live answer a question, and are those that do not named?"""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import pytest
from coordination_zoo import Service

from xtrainer.launch import inquiry
from xtrainer.launch.inquiry import Standing

WAIT_S = 0.6


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Three processes, each a thread with a speaker of its own; it asks as number 0."""
    found = Service(3)
    found.install(monkeypatch, inquiry)
    speakers = [inquiry._Speaker() for _ in range(3)]
    monkeypatch.setattr(inquiry, "_speaker", lambda: speakers[found.index()])
    monkeypatch.setattr(inquiry, "_POLL_S", 0.01)

    def within(seconds: float, call: Callable[[], object]) -> bool:
        index = found.index()

        def run() -> None:
            found.as_process(index)
            call()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        return not thread.is_alive()

    monkeypatch.setattr(inquiry, "within", within)
    return found


def living(service: Service, index: int, standing: Standing, times: int = 1) -> threading.Thread:
    """Returns a process that looks for questions until it has answered so many."""

    def run() -> None:
        service.as_process(index)
        inquiry._speaker().describe = lambda: standing
        inquiry.introduce()
        answered, end = set(), time.monotonic() + 10
        while len(answered) < times and time.monotonic() < end:
            inquiry.answer_if_asked()
            answered.add(inquiry._speaker()._answered)
            answered.discard("")
            time.sleep(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_who_lives_answers_with_its_stacks_and_who_does_not_is_missing(service: Service) -> None:
    service.values["xtrainer/hang/places/2"] = "pid 7 on b"
    living(service, 1, Standing(doing="callbacks", for_s=3.5, step=4, stacks="Thread one"))
    found = inquiry.inquire(WAIT_S)
    assert found is not None
    assert found.standings[1] == Standing(doing="callbacks", for_s=3.5, step=4, stacks="Thread one")
    assert found.standings[0].doing == "outside"  # this one does not train
    assert "in standing" in found.standings[0].stacks
    assert found.missing == {2: "pid 7 on b"}


def test_nobody_is_waited_for_once_all_have_answered(service: Service) -> None:
    for index in (1, 2):
        living(service, index, Standing(doing="step", step=4))
    begun = time.monotonic()
    found = inquiry.inquire(60.0)
    assert found is not None and found.missing == {}
    assert time.monotonic() - begun < 10.0


def test_only_one_asks_at_a_time(service: Service) -> None:
    assert inquiry.inquire(0.1) is not None
    service.as_process(1)
    assert inquiry.inquire(0.1) is None
    service.as_process(0)
    inquiry.end_question()
    service.as_process(1)
    assert inquiry.inquire(0.1) is not None


def test_a_process_answers_each_question_once_and_keeps_one_answer(service: Service) -> None:
    thread = living(service, 1, Standing(doing="step", step=4), times=2)
    for _ in range(2):
        found = inquiry.inquire(WAIT_S)
        assert found is not None and found.standings[1].step == 4
        inquiry.end_question()
    thread.join(10)
    answers = [key for key in service.values if key.startswith(inquiry._ANSWERS)]
    assert len(answers) == 1


def test_a_service_that_does_not_answer_is_waited_for_in_vain_only_so_long(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiry, "_SERVICE_S", 0.1)
    stopped = threading.Event()
    monkeypatch.setattr(service, "key_value_set", lambda *args: stopped.wait(60))
    service.as_process(1)
    found = inquiry.inquire(0.1)
    stopped.set()
    assert found is not None
    assert list(found.standings) == [1]
    assert found.missing == {0: "the main process, through which the others speak"}


def test_a_service_that_is_gone_is_a_missing_main_process(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any) -> None:
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection refused")

    monkeypatch.setattr(service, "key_value_set", gone)
    service.as_process(2)
    found = inquiry.inquire(0.1)
    assert found is not None and list(found.missing) == [0]


def test_an_error_in_what_is_said_does_not_reach_the_thread_that_answers(
    service: Service,
) -> None:
    service.values["xtrainer/hang/asked/now"] = "0-1"
    service.as_process(1)

    def broken() -> Standing:
        raise ValueError("broken")

    inquiry._speaker().describe = broken
    inquiry.answer_if_asked()
    assert not any(key.startswith(inquiry._ANSWERS) for key in service.values)


def test_a_process_alone_answers_itself() -> None:
    with inquiry.speaking(lambda: Standing(doing="step", step=9)):
        found = inquiry.inquire()
    assert found == inquiry.Found({0: Standing(doing="step", step=9)}, {})
    assert inquiry._speaker().describe is None

"""Do processes hear what the others say, once and in order, and not wait for the dead?"""

from typing import Any

import pytest
from coordination_zoo import Service

from xtrainer.errors import PeerError
from xtrainer.launch import barrier, broadcast, exchange, gather, gather_results, raise_for_peers


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Three processes, each with an exchange of its own."""
    found = Service(3)
    found.install(monkeypatch, exchange)
    own: dict[int, Any] = {}  # each is made by its own thread
    monkeypatch.setattr(
        exchange,
        "_exchange",
        lambda: own.get(found.index()) or own.setdefault(found.index(), exchange._Exchange()),
    )
    return found


def test_a_process_alone_hears_itself() -> None:
    assert gather({"a": 1}, "x") == [{"a": 1}]
    assert broadcast([2], "x") == [2]
    assert gather_results(lambda: "y", "x") == ["y"]
    barrier("x")


def test_a_process_alone_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        gather_results(lambda: 1 // 0, "x")


def test_all_hear_all_in_the_order_of_the_processes(service: Service) -> None:
    found = service.on_all(lambda i: [gather({"from": i}, "a"), gather(i * i, "b")])
    assert found == [[[{"from": 0}, {"from": 1}, {"from": 2}], [0, 1, 4]]] * 3


def test_only_the_main_process_is_heard_in_a_broadcast(service: Service) -> None:
    assert service.on_all(lambda i: broadcast(f"said by {i}", "a")) == ["said by 0"] * 3


def test_what_all_have_heard_is_deleted(service: Service) -> None:
    def speak(index: int) -> None:
        for number in range(20):
            gather(number, "a")
            broadcast(number, "b")

    service.on_all(speak)
    assert len(service.values) <= 2 * service.processes


def test_who_does_not_come_is_named(service: Service) -> None:
    def speak(index: int) -> Any:
        return None if index == 1 else gather(index, "rows of a batch", timeout_s=0.1)

    first, _, last = service.on_all(speak)
    for error in (first, last):
        assert isinstance(error, PeerError)
        assert "Process 1 did not answer to 'rows of a batch' within 0.1 s" in str(error)


def test_an_error_on_one_is_raised_on_all_with_its_traceback(service: Service) -> None:
    def make(index: int) -> int:
        if index == 2:
            raise ValueError("broken part")
        return index

    found = service.on_all(lambda i: gather_results(lambda: make(i), "parts"))
    assert isinstance(found[2], ValueError)
    for error in found[:2]:
        assert isinstance(error, PeerError)
        assert "since process 2 has failed:\nProcess 2:\nTraceback" in str(error)
        assert str(error).endswith("ValueError: broken part")


def test_an_error_within_a_talk_is_passed_on_once(service: Service) -> None:
    def inner(index: int) -> int:
        if index == 0:
            raise ValueError("broken part")
        return index

    def speak(index: int) -> Any:
        try:
            gather_results(lambda: gather_results(lambda: inner(index), "in"), "out")
        except (ValueError, PeerError) as error:
            return type(error).__name__, gather(index, "after it")  # all are at one place again

    assert service.on_all(speak) == [
        ("ValueError", [0, 1, 2]),
        ("PeerError", [0, 1, 2]),
        ("PeerError", [0, 1, 2]),
    ]


def test_a_long_traceback_is_cut_at_its_beginning(service: Service) -> None:
    def speak(index: int) -> Any:
        def make() -> None:
            if index == 0:
                raise ValueError("x" * (2 * exchange.MAX_TEXT) + " the end")

        return gather_results(make, "parts")

    found = service.on_all(speak)
    assert len(str(found[1])) < exchange.MAX_TEXT + 200
    assert str(found[1]).endswith("the end")


def test_all_failed_processes_are_told() -> None:
    with pytest.raises(PeerError, match=r"(?s)process 1 and process 3.*Process 1:\na.*3:\nb"):
        raise_for_peers({1: "a\n", 3: "b\n"})
    raise_for_peers({})


def test_other_threads_do_not_speak(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    made = exchange._Exchange()  # by this thread
    monkeypatch.setattr(exchange, "_exchange", lambda: made)
    for error in service.on_all(lambda i: gather(i, "rows of a batch")):
        assert isinstance(error, PeerError)
        assert "'rows of a batch': the processes of a run speak to each other from one thread" in (
            str(error)
        )
    assert service.values == {}


def test_waits_may_be_allowed_more_time_and_never_less(service: Service) -> None:
    def speak(index: int) -> list[float]:
        limits, own = [], exchange._exchange()
        for seconds in (5.0, 5000.0):
            with exchange.allowing(seconds):
                limits.append(own.timeout_s)
        return [*limits, own.timeout_s]

    assert service.on_all(speak) == [[300.0, 5000.0, 300.0]] * 3

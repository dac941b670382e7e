"""Does a process that fails end the others, and only when they have not ended by themselves?"""

import json
import threading
import time
from typing import Any

import pytest
from coordination_zoo import Service

from xtrainer.errors import HangError, PeerError
from xtrainer.launch import exits, peers

GRACE_S = 0.3


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two processes; a thread of one that ends it notes when and is gone."""
    found = Service(2)
    found.install(monkeypatch, peers)
    monkeypatch.setattr(peers, "_POLL_S", 0.02)
    ended: list[tuple[int, float]] = []

    def leave(code: int) -> None:
        ended.append((code, time.monotonic()))
        raise Ended

    monkeypatch.setattr(exits.os, "_exit", leave)
    monkeypatch.setattr(exits.logging, "shutdown", lambda: None)
    found.ended = ended  # type: ignore[attr-defined]
    yield found
    monkeypatch.setattr(peers, "coordination_client", lambda: None)  # ends the watching threads


def watcher(grace_s: float = GRACE_S) -> Any:
    made = peers._Watcher()
    made._grace_s = grace_s
    return made


def watching(made: Any) -> threading.Thread:
    """Returns the thread that watches, begun; not ``start``, which would hook into Python."""

    def run() -> None:
        try:
            made._run()
        except Ended:
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def failure(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def wait_for(thread: threading.Thread, seconds: float = 5.0) -> None:
    thread.join(seconds)
    assert not thread.is_alive()


def test_what_one_announces_the_others_know(service: Any) -> None:
    first, second = watcher(), watcher()
    service.as_process(0)
    first.announce(failure("broken"))
    service.as_process(1)
    second._read()
    ((key, text),) = second._failures.items()
    assert peers._process(key) == 0
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("ValueError: broken")


def test_an_error_is_announced_once(service: Any) -> None:
    made, error = watcher(), failure("broken")
    made.announce(error)
    made.announce(error)
    assert len(service.values) == 1
    made.announce(failure("another"))
    assert len(service.values) == 2


def test_a_process_that_goes_on_is_ended_after_the_grace(
    service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.as_process(1)
    watcher().announce(failure("broken"))
    service.values["xtrainer/leaving/1"] = ""
    begin = time.monotonic()
    wait_for(watching(watcher()))  # as process 0
    ((code, at),) = service.ended
    assert code == exits.ERROR_CODE == 1
    assert at - begin >= GRACE_S
    said = capsys.readouterr().err
    assert "Process 1 has failed, so process 0 ends:\nTraceback" in said
    assert "ValueError: broken" in said


def test_a_failure_that_was_settled_ends_nobody(service: Any) -> None:
    made = watcher()
    service.as_process(1)
    watcher().announce(failure("broken"))
    service.as_process(0)
    made.settle()
    thread = watching(made)
    time.sleep(2 * GRACE_S)
    assert thread.is_alive() and service.ended == []
    service.as_process(1)
    watcher().announce(failure("unheard of"))  # under the key of the first one, which is taken
    service.values["xtrainer/failures/1/7"] = '{"text": "a new one"}'
    service.values["xtrainer/leaving/1"] = ""
    wait_for(thread)
    assert len(service.ended) == 1


def test_the_grace_begins_anew_with_what_comes_after_a_settled_failure(service: Any) -> None:
    made = watcher()
    thread = watching(made)
    service.as_process(1)
    service.values["xtrainer/failures/1/0"] = '{"text": "one"}'
    service.values["xtrainer/leaving/1"] = ""
    time.sleep(GRACE_S / 2)
    made.settle()
    time.sleep(GRACE_S / 2)
    begin = time.monotonic()
    service.values["xtrainer/failures/1/1"] = '{"text": "two"}'
    wait_for(thread)
    assert service.ended[0][1] - begin >= GRACE_S


def test_the_main_process_leaves_last(service: Any) -> None:
    made = watcher(grace_s=5.0)
    made.announce(failure("broken"))
    thread = threading.Thread(target=lambda: _quietly(made._leave), daemon=True)
    thread.start()
    time.sleep(0.2)
    assert service.ended == []
    service.key_value_set("xtrainer/leaving/1", "")
    wait_for(thread)


def test_the_main_process_does_not_wait_for_ever(service: Any) -> None:
    made = watcher()
    thread = threading.Thread(target=lambda: _quietly(made._leave), daemon=True)
    thread.start()
    wait_for(thread)
    assert len(service.ended) == 1


def test_a_second_thread_does_not_cut_short_the_first_that_leaves(service: Any) -> None:
    made = watcher(grace_s=60.0)
    leave = [threading.Thread(target=lambda: _quietly(made._leave), daemon=True) for _ in range(2)]
    for thread in leave:  # that of the program, and the one that watches
        thread.start()
    time.sleep(0.3)
    assert service.ended == []  # the main process still waits for the other one
    service.key_value_set("xtrainer/leaving/1", "")
    end = time.monotonic() + 5.0
    while not service.ended and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.1)
    assert len(service.ended) == 1


def test_an_error_from_another_process_is_not_announced(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.jax.distributed, "is_initialized", lambda: True)
    made = watcher()
    monkeypatch.setattr(peers, "_watcher", lambda: made)
    peers.announce(PeerError("heard of it"))
    assert service.values == {}
    peers.announce(failure("own"))
    assert len(service.values) == 1


def test_a_process_alone_announces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(peers, "_watcher", lambda: asked.append(1))
    peers.watch()
    peers.announce(failure("broken"))
    peers.settle()
    assert asked == []


def test_what_nobody_caught_is_announced_again(service: Any) -> None:
    made, seen = watcher(), []
    error = failure("broken")
    made.announce(error)
    made.settle()
    hook = made._hook(lambda *args: seen.append(args))
    hook(type(error), error, error.__traceback__)
    assert len(service.values) == 2 and seen[0][1] is error
    with pytest.raises(Ended):
        service.values["xtrainer/leaving/1"] = ""
        made._leave_if_failed()


def test_an_error_that_followed_from_another_is_shown_with_that_one(
    service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.values["xtrainer/failures/1/0"] = '{"text": "the cause"}'
    service.values["xtrainer/leaving/1"] = ""
    made, error = watcher(), failure("connection closed by peer")
    made._hook(lambda *args: None)(type(error), error, error.__traceback__)
    with pytest.raises(Ended):
        made._leave_if_failed()
    said = capsys.readouterr().err
    assert said == "Process 1 has failed, so process 0 ends:\nthe cause\n"  # Python shows the own


def test_a_run_without_failures_leaves_as_python_does(service: Any) -> None:
    watcher()._leave_if_failed()
    assert service.ended == []


def _quietly(leave: Any) -> None:
    try:
        leave()
    except Ended:
        pass


def test_a_second_watch_keeps_the_grace_unless_it_gives_another(service: Any) -> None:
    made = watcher(grace_s=7.0)
    made._thread = threading.current_thread()  # as if it had been started
    made.start(None)
    assert made._grace_s == 7.0
    made.start(3.0)
    assert made._grace_s == 3.0


def test_a_hang_ends_the_others_at_once_and_with_its_code(
    service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.as_process(1)
    first = watcher()
    first.announce(HangError("nothing moves on"))
    service.values["xtrainer/leaving/1"] = ""
    service.as_process(0)
    begin = time.monotonic()
    wait_for(watching(watcher(grace_s=60.0)))
    ((code, at),) = service.ended
    assert code == 124 and at - begin < 10.0
    assert "nothing moves on" in capsys.readouterr().err


def test_of_several_failures_a_hang_is_shown_first_and_gives_the_code(
    service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = watcher()
    made.announce(failure("the connection is gone"))
    service.values["xtrainer/failures/1/0"] = '{"text": "a hang", "code": 124, "absent": []}'
    service.values["xtrainer/leaving/1"] = ""
    words: list[str] = []
    made.last_words.append(words.append)
    made._read()
    with pytest.raises(Ended):
        made._leave()
    assert service.ended[0][0] == 124
    said = capsys.readouterr().err
    assert said.index("a hang") < said.index("the connection is gone")
    assert words[0].startswith("Process 1 has failed, so process 0 ends:\na hang")


def test_last_words_that_do_not_end_are_cut_short(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_LAST_WORDS_S", 0.05)
    may_end = threading.Event()
    made = watcher()
    made.last_words.append(lambda text: may_end.wait(60))
    service.values["xtrainer/leaving/1"] = ""
    made.announce(failure("broken"))
    with pytest.raises(Ended):
        made._leave()
    may_end.set()


def test_nobody_waits_for_a_process_that_is_missing(service: Any) -> None:
    made, begin = watcher(grace_s=60.0), time.monotonic()
    with pytest.raises(Ended):
        made.depart(HangError("process 1 is missing"), absent=[1])
    ((code, at),) = service.ended
    assert code == 124 and at - begin < 10.0
    said = json.loads(service.values["xtrainer/failures/0/0"])
    assert said["absent"] == [1] and said["code"] == 124


def test_where_the_main_process_is_missing_nobody_is_told(service: Any) -> None:
    service.as_process(1)
    with pytest.raises(Ended):
        watcher().depart(HangError("process 0 is missing"), absent=[0])
    assert service.values == {} and service.ended[0][0] == 124

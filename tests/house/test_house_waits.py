"""Has every wait of the framework a bound, or a reason why it needs none?"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAITING = {"result", "exception", "wait", "join", "get", "acquire", "communicate"}
WITH_TIMEOUT = {"run", "get", "call", "check_output", "check_call"}
"""Of ``subprocess`` and ``ray``: these take other arguments than a time as well."""

WATCHED = "a run waits there in its training thread, which the watchdog looks at"
OWN = "it has a limit inside"
ENDS = "what it waits for was told to end, or has ended"
WAITS_FOR_WORK = "a thread of our own that waits for work"
VALUE = "a context variable, no wait"

REASONS = {
    "callbacks/checkpoint.py: manager.wait()": OWN,
    "callbacks/checkpoint.py: self._open().wait()": OWN,
    "callbacks/progress_views.py: captured.get()": "a text that is there, no wait",
    "checkpoint/background.py: self._jobs.get()": WAITS_FOR_WORK,
    "checkpoint/manager.py: done.exception()": ENDS,
    "checkpoint/manager.py: self.wait()": OWN,
    "checkpoint/under_way.py: arrays.wait()": "in a thread that Save.outcome gives up",
    "data/grain_reader.py: parent.join()": "a worker that is there for as long as its parent",
    "data/prefetch.py: self._ready.get()": "only what is there already",
    "data/prefetch.py: self._room.get()": WAITS_FOR_WORK,
    "data/prefetch.py: self._thread.join()": WATCHED,
    "launch/exits.py: threading.main_thread().join()": WAITS_FOR_WORK,
    "launch/local.py: guard.wait()": "it was killed",
    "launch/peers.py: self._leaving.acquire()": "by intent for good: another thread leaves",
    "launch/ray.py: ray.get(inbox.result.remote())": "the run, which is watched in its processes",
    "launch/interrupts.py: thread.join()": "it was told to end, and only reads a pipe",
    "step/programs.py: program.result()": "it is done",
    "step/programs.py: thread.join()": "a compilation that the program has asked for, at its end",
    "trainer/assemble.py: begin_state(init, exmp_input, optimizer, seed, mesh, parallel, "
    "precision).result()": "compiles what it asks for",
    "trainer/assemble.py: self._program.result()": "the compilation of the first state",
    "trainer/batch_trials.py: program.result()": "compiles what it asks for",
    "trainer/parts.py: carried.result()": "the compilation of the first state",
    "trainer/pretrained.py: capture.get()": VALUE,
    "trainer/shapes.py: _SHAPES_ONLY.get()": VALUE,
}


def endless_waits(name: str, source: str) -> set[str]:
    """Returns the calls in a source that may wait and are given no time."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        timed = any(keyword.arg in ("timeout", "timeout_s") for keyword in node.keywords)
        owner = ast.unparse(node.func.value)
        bare = node.func.attr in WAITING and not node.args
        foreign = owner in ("subprocess", "ray") and node.func.attr in WITH_TIMEOUT
        if (bare or foreign) and not timed:
            found.add(f"{name}: {ast.unparse(node)}")
    return found


def test_every_wait_has_a_bound_or_a_reason() -> None:
    found = set()
    for path in sorted((ROOT / "xtrainer").rglob("*.py")):
        name = str(path.relative_to(ROOT / "xtrainer"))
        found |= endless_waits(name, path.read_text(encoding="utf-8"))
    assert found == set(REASONS)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("future.result()", 1),
        ("future.result(3.0)", 0),
        ("event.wait(timeout=3)", 0),
        ("thread.join()", 1),
        ("', '.join(names)", 0),
        ("queue.get()", 1),
        ("table.get('key')", 0),
        ("subprocess.run(['git'])", 1),
        ("subprocess.run(['git'], timeout=5)", 0),
        ("ray.get(reference)", 1),
        ("ray.get(reference, timeout=5)", 0),
        ("lock.acquire()", 1),
    ],
)
def test_a_wait_without_a_bound_is_found(source: str, count: int) -> None:
    assert len(endless_waits("planted.py", source)) == count


def test_the_bounds_are_listed_where_waiting_is_explained() -> None:
    text = (ROOT / "xtrainer" / "launch" / "waits.py").read_text(encoding="utf-8")
    for setting in ("startup", "hang", "loader", "validation", "save"):
        assert f"``{setting}_timeout_s``" in text

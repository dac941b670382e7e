"""What a step costs the host, in counts: calls of Python, dispatches, transfers, waits."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt

STEPS = 100
"""Steps that are counted, after as many others."""


class Plain(probes.Traced):
    """The same without anything that is not needed for a step."""

    model_class = zoo.MLP


def trainer(steps_per_dispatch: int = 1) -> Any:
    return zoo.make_trainer(
        trainer_class=Plain,
        batch=probes.one(0),
        mesh=zoo.devices(1),
        steps_per_dispatch=steps_per_dispatch,
    )


def counted(made: Any, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Calls ``begin`` after step 101 of a run, and ``end`` after as many more as are counted."""

    def act(_: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == STEPS:
            begin()
        elif step == 2 * STEPS:
            end()

    made.callbacks.append(probes.acting("on_training_step", act, every_n_steps=STEPS)(made))
    batches = probes.numbered(8)
    made.train_model((batches * 40)[: 3 * STEPS], num_epochs=1)


def python_calls(made: Any) -> Counter[str]:
    """Returns the Python functions that the loop's thread has called, by name."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            found[frame.f_code.co_qualname] += 1

    counted(made, lambda: sys.setprofile(note), lambda: sys.setprofile(None))
    return found


def test_a_step_takes_few_calls_of_python() -> None:
    found = python_calls(trainer())
    # Two rows fall into these steps as well.
    assert sum(found.values()) / STEPS < 30, found.most_common(30)
    # A third of them is spent on reading batches, several in a row.
    reading = ("Prefetcher._", "LoaderSource.", "BatchPreparer.", "Owner.", "_Seen.", "LoaderPos")
    calls = sum(count for name, count in found.items() if not name.startswith(reading))
    assert calls / STEPS < 17, found
    assert found["Executor.__call__"] == STEPS
    # JAX does not take the state apart in Python, nor put it together.
    assert not [name for name in found if "flatten" in name and found[name] > 10], found


def test_steps_of_one_dispatch_share_its_calls() -> None:
    one, many = python_calls(trainer()), python_calls(trainer(steps_per_dispatch=25))
    assert many["TrainExecutor.many"] == STEPS / 25
    assert many["Executor.__call__"] == 0
    # What is left is done for each batch: it is read, copied, looked at and gathered.
    dispatching = ("_Run.", "InFlight.", "Executor.", "TrainExecutor.", "Compiled.", "Flat.")

    def calls(found: Counter[str]) -> int:
        counts = found.items()
        return sum(count for name, count in counts if name.startswith(dispatching))

    assert calls(one) > 6 * STEPS
    assert calls(many) < 0.4 * calls(one), many


@pytest.mark.parametrize("steps_per_dispatch", [1, 10])
def test_between_rows_nothing_is_fetched_and_nothing_is_placed(
    monkeypatch: pytest.MonkeyPatch, steps_per_dispatch: int
) -> None:
    seen: list[str] = []
    counting = [False]

    def spy(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if counting[0]:
                seen.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    made = trainer(steps_per_dispatch)
    for name in ("device_get", "device_put", "block_until_ready"):
        spy(jax, name)
    spy(type(made.state.step), "copy_to_host_async")

    def begin() -> None:
        counting[0] = True

    def end() -> None:
        counting[0] = False

    def between(_: Any, metrics: Any, epoch: int, step: int) -> None:
        begin() if step == 110 else end()  # rows are due after 100 and 150

    made.callbacks.append(probes.acting("on_training_step", between, every_n_steps=10)(made))
    made.callbacks.append(
        probes.acting("on_training_step", lambda *_: None, every_n_steps=1000)(made)
    )
    made.train_model((probes.numbered(8) * 40)[:300], num_epochs=1)
    assert seen == []


def test_a_row_of_every_step_waits_for_no_step_but_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from xtrainer.metrics import HostWindow

    newest: list[tuple[int, int]] = []
    fetch = HostWindow.fetch.__func__  # type: ignore[attr-defined]
    made = probes.Repeatable(probes.traced()).begin(every=1)

    def late(cls: Any, window: Any) -> Any:
        found = fetch(cls, window)
        newest.append((made.progress.step, len(newest) + 1))
        return found

    monkeypatch.setattr(HostWindow, "fetch", classmethod(late))
    made.train_model(probes.numbered(8), num_epochs=1)
    # While step n + 1 is under way the window of step n is read; the last one at the end.
    assert [dispatched - row for dispatched, row in newest] == [1] * 7 + [0]


def test_the_state_is_not_copied_and_every_step_runs_in_the_same_buffers() -> None:
    made = trainer()
    pointers: list[set[int]] = []

    def note(_: Any, metrics: Any, epoch: int, step: int) -> None:
        leaves = jax.tree.leaves(made.state.params)
        pointers.append({leaf.unsafe_buffer_pointer() for leaf in leaves})

    made.callbacks.append(probes.acting("on_training_step", note)(made))
    made.train_model(probes.numbered(6), num_epochs=1)
    assert all(found == pointers[0] for found in pointers)
    np.testing.assert_equal(len(pointers), 6)


def test_a_callback_is_asked_for_the_hooks_that_it_has_and_no_others() -> None:
    asked: list[str] = []
    told: list[int] = []

    class Listening(xt.Callback):
        def is_due(self, hook: str, args: Any) -> bool:
            asked.append(hook)
            return super().is_due(hook, args)

        def on_training_log(self, train_metrics: Any, step_idx: int) -> None:
            told.append(step_idx)

    made = trainer()
    made.callbacks.append(Listening(xt.CallbackConfig(), made))
    made.train_model(probes.numbered(8), num_epochs=2)
    assert asked == ["on_training_log"] * len(told)
    assert told[-1] == 16

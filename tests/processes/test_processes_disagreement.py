"""What if one process of a run fails, stops or ends early? All end at one step, with the reason."""

import functools
import math
from typing import Any

import disagree
import jax
import member
import numpy as np
import process_zoo
import pytest

from xtrainer.checkpoint import read_meta, restore_partial
from xtrainer.trainer.box_files import read_records

pytestmark = pytest.mark.processes

BOUND_S = 10.0
"""From a failure to the moment when the last process has left what it was doing."""

SHAPES = [
    # (processes, devices of each, axes)
    pytest.param((2, 1, "dp"), id="2x1"),
    pytest.param((2, 2, "dp"), id="2x2", marks=pytest.mark.slow),
    pytest.param((4, 1, "dp"), id="4x1", marks=pytest.mark.slow),
    pytest.param((2, 1, "tp"), id="2x1tp", marks=pytest.mark.slow),
]
UNEVEN = ("list", "no_length", "some_length")
ERRORS = {
    # scenario: (steps that stand, the message)
    "loader": (2, "the loader broke here"),
    "first_batch": (0, "the loader broke here"),
    "validation_loader": (3, "the loader broke here"),
    "step_hook": (3, "the hook broke here"),
    "logger": (4, "the logger broke here"),
    "hook_and_stop": (3, "the hook broke here"),
    "length_too_large": (4, "loader ended after 4 batches, expected 5 by its len()"),
}
LEFT_TOGETHER = ("loader", "step_hook", "logger", "hook_and_stop", "length_too_large")
STOPS = {"stop": 3, "stop_at_epoch_end": 5, "stop_in_validation": 4}
NAMES = [
    "plain-",
    *(f"{name}-{who}" for name in (*UNEVEN, *ERRORS, "stop", "nan", "scalar") for who in "01"),
    *("length_too_small-0", "stop-01", "stop_at_epoch_end-0", "stop_in_validation-1"),
    *("early_stopping-01", "stop_on_last-1", "skipped_nan-1", "configs-1", "plan-1", "step-1"),
    *("folder-0", "data-", "data-1"),
    "plain-1",
]
"""All scenarios, one after another in one run; the last says that they have left it usable."""

Said = list[dict[str, Any]]


@pytest.fixture(scope="module", params=SHAPES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run of processes that has played every scenario."""
    count, devices, axes = request.param
    folder = tmp_path_factory.mktemp("disagree")
    found = process_zoo.run_processes("disagree.py", folder, count, devices, axes, *NAMES)
    return found.ended_well()


@functools.cache
def play() -> disagree.Play:
    return disagree.Play()


@functools.cache
def alone(name: str, folder: str) -> Any:
    """Returns what a process alone makes of a scenario."""
    return play()(name, member.Member(process_zoo.Path(folder)))["stands"]


@functools.cache
def steps(count: int) -> Any:
    """Returns where a process alone stands after so many steps."""
    stage, own = play().stage("plain"), member.Member(process_zoo.TESTS)
    trainer = stage.begin(own, "")
    if count == 0:
        return {"params": member.leaves(trainer.state.params), "ids": []}
    found = disagree.train(own, trainer, "", stage.loader(), num_train_steps=count)
    return found["stands"]


def values(run: process_zoo.Run, name: str) -> Said:
    """Returns what the processes recorded of a scenario in which nothing unforeseen was raised."""
    said = run.said(name)
    assert [one["error"] for one in said] == [None] * len(said), said[0]["text"]
    return [one["value"] for one in said]


def assert_one_state(found: Said, expected: Any) -> None:
    """Fails unless all processes stand where a process alone does, bit for bit among them."""
    assert all(one["params"] == found[0]["params"] for one in found)
    for leaf, other in zip(found[0]["params"], expected["params"], strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)


def assert_whole(folder: Any, listed: list[int]) -> None:
    """Fails unless the folders named as steps are those that count, and each can be read."""
    named = [path for path in folder.iterdir() if path.name.isdigit()]
    assert sorted(int(path.name) for path in named) == listed
    state = play().stage("plain").begin(member.Member(folder), "").state
    for path in named:
        assert int(read_meta(path)["progress"]["step"]) == int(path.name)
        parts = restore_partial(path, ("params", "step"), state)
        assert int(jax.device_get(parts["step"])) == int(path.name)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("name", UNEVEN)
def test_loaders_that_do_not_end_together_end_the_run_at_the_shorter_one(
    run: process_zoo.Run, name: str, who: int
) -> None:
    found = values(run, f"{name}-{who}")
    for one in found:
        assert one["raised"] == "PeerError"
        assert "do not end together: at step 4" in one["traceback"]
        assert f"process {who} is at the end of its pass after 4 batches" in one["traceback"]
        assert f"process {1 - who} has more after 4 batches" in one["traceback"]
        assert one["stands"]["step"] == [4, 4]
    assert_one_state([one["stands"] for one in found], steps(4))
    assert_whole(run.folder / f"{name}-{who}" / "checkpoints", [2, 4])


def test_other_data_of_one_process_end_all_before_a_step(run: process_zoo.Run) -> None:
    found = values(run, "data-1")
    assert [one["raised"] for one in found] == [
        "LoaderError" if index == 1 else "PeerError" for index in range(len(found))
    ]
    for one in found:
        assert "The data of the 'train' loader have changed: found 80 rows, " in one["traceback"]
        assert (one["stands"]["step"], one["steps"]) == ([2, 2], [2])
    for one in values(run, "data-"):
        assert (one["raised"], one["stands"]["step"]) == (None, [4, 4])


def test_a_length_that_is_too_small_does_no_harm(run: process_zoo.Run) -> None:
    found = [one["stands"] for one in values(run, "length_too_small-0")]
    assert [one["reason"] for one in found] == ["FINISHED"] * len(found)
    assert found[0]["step"] == [10, 10]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_one_process_is_raised_on_all(
    run: process_zoo.Run, name: str, who: int
) -> None:
    step, message = ERRORS[name]
    said, found = run.said(f"{name}-{who}"), values(run, f"{name}-{who}")
    for index, one in enumerate(found):
        assert (one["raised"] == "PeerError") == (index != who)
        assert message in one["traceback"]
        assert index == who or f"Process {who}:\nTraceback" in one["traceback"]
        assert one["stands"]["reason"] == "FAILED"
        assert one["stands"]["step"] == [step, step]
        assert one["stands"]["position"] == step
    assert_one_state([one["stands"] for one in found], steps(step))
    if name != "logger":
        assert [one["stands"]["ids"] for one in found] == [steps(step)["ids"]] * len(found)
    if step:
        # Every second step, and the last good one where all processes have left the run at it.
        saved = sorted({*range(2, step + 1, 2), *([step] if name in LEFT_TOGETHER else [])})
        assert_whole(run.folder / f"{name}-{who}" / "checkpoints", saved)
    if name != "length_too_large":
        seconds = max(one["left"] for one in said) - said[who]["failed"]
        print(f"{name} on process {who}: all had left it after {seconds:.2f} s")
        assert 0 < seconds < BOUND_S


@pytest.mark.parametrize(
    ("name", "who"),
    [
        *(("stop", "0"), ("stop", "1"), ("stop", "01")),
        *(("stop_at_epoch_end", "0"), ("stop_in_validation", "1")),
    ],
)
def test_a_stop_is_taken_at_the_step_of_a_run_of_one_process(
    run: process_zoo.Run, tmp_path_factory: pytest.TempPathFactory, name: str, who: str
) -> None:
    found = values(run, f"{name}-{who}")
    expected = alone(f"{name}-", str(tmp_path_factory.getbasetemp() / "stops"))
    detail = f"Process {who[0]} asked for it. {disagree.SAID}"
    same = ("reason", "step", "progress", "skipped", "position")
    for one in found:
        stands = one["stands"]
        assert {key: stands[key] for key in same} == {key: expected[key] for key in same}
        assert (stands["reason"], stands["detail"]) == ("REQUESTED", detail)
        assert stands["step"] == [STOPS[name]] * 2
        assert stands["ids"] == pytest.approx(expected["ids"])
        assert STOPS[name] == one["steps"][-1]
    assert_one_state([one["stands"] for one in found], expected)
    assert_whole(run.folder / f"{name}-{who}" / "checkpoints", found[0]["steps"])


def test_early_stopping_ends_all_at_the_step_of_a_run_of_one_process(
    run: process_zoo.Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = values(run, "early_stopping-01")
    expected = alone("early_stopping-", str(tmp_path_factory.getbasetemp() / "early_stopping"))
    assert expected["reason"] == "REQUESTED"
    assert 2 < expected["step"][0] < 10
    for one in found:
        stands = one["stands"]
        assert [stands[k] for k in ("reason", "step")] == [expected[k] for k in ("reason", "step")]
        said = f"Process 0 asked for it. {expected['detail']}".split(": ")
        assert stands["detail"].split(": ")[:2] == said[:2]
        assert one["steps"][-1] == expected["step"][0]
    assert_one_state([one["stands"] for one in found], expected)


def test_a_stop_with_the_last_step_is_heard_by_all(run: process_zoo.Run) -> None:
    found = values(run, "stop_on_last-1")
    for one in found:
        assert (one["stands"]["step"], one["steps"][-1]) == ([6, 6], 6)
        assert one["stands"]["reason"] == "REQUESTED"  # as on a process alone
    assert_one_state([one["stands"] for one in found], steps(6))


@pytest.mark.parametrize(
    ("name", "who", "step", "reason"),
    [
        ("nan", 0, 2, "NONFINITE"),
        ("nan", 1, 2, "NONFINITE"),
        ("skipped_nan", 1, 5, "FINISHED"),
    ],
)
def test_a_nan_in_the_data_of_one_process_is_a_bad_step_for_all(
    run: process_zoo.Run,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    who: int,
    step: int,
    reason: str,
) -> None:
    found = [one["stands"] for one in values(run, f"{name}-{who}")]
    expected = alone(f"{name}-", str(tmp_path_factory.getbasetemp() / "nan"))
    same = ("reason", "detail", "step", "progress", "skipped", "position")
    for one in found:
        assert {key: one[key] for key in same} == {key: expected[key] for key in same}
        assert (one["reason"], one["step"], one["skipped"]) == (reason, [step, step], 1)
    assert_one_state(found, expected)


@pytest.mark.parametrize("name", ["nan-0", "nan-1", "skipped_nan-1"])
def test_a_step_that_all_have_refused_has_one_record(run: process_zoo.Run, name: str) -> None:
    records = read_records(run.folder / name / "run")
    (record,) = records.values()
    assert (record["step"], record["why"], record["process"]) == (3, "refused", 0)
    assert record["loader"]["batches"] == 2
    inputs = next(leaf for leaf in record["batch"]["leaves"] if leaf["path"] == "inputs")
    entries = math.prod(inputs["shape"])
    assert inputs["shape"][0] == disagree.BATCH
    assert inputs["nan"] in (entries, entries // len(run.members))  # of all, or of one
    assert record["batch"]["note"] == "It is spread over several processes."
    bad = {name for name, norm in record["norms"]["gradients"].items() if norm == "nan"}
    assert bad >= {"Dense_0/kernel", "Dense_1/kernel", "Dense_1/bias"}
    assert all(norm > 0 for norm in record["norms"]["parameters"].values())


def test_configs_that_differ_are_listed_on_every_process(run: process_zoo.Run) -> None:
    for one in run.said("configs-1"):
        assert one["error"] == "ConfigError"
        assert "trainer.seed: found 1 on process 1 and 0 on process 0" in one["text"]
        assert "model.model_config.width: found 6 on process 1 and 4 on process 0" in one["text"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("plan", ("'num_train_steps': 4", "'num_train_steps': 3")), ("step", ("'step': 1",))],
)
def test_a_plan_or_a_start_that_differs_is_refused_on_every_process(
    run: process_zoo.Run, name: str, parts: tuple[str, ...]
) -> None:
    for one in values(run, f"{name}-1"):
        assert one["raised"] == "PeerError"
        assert "Process 1 would train from" in one["traceback"]
        assert all(part in one["traceback"] for part in parts)


def test_a_folder_in_which_another_run_trains_is_refused_on_every_process(
    run: process_zoo.Run,
) -> None:
    for index, one in enumerate(run.said("folder-0")):
        assert one["error"] == ("PeerError" if index else "FolderInUseError")
        assert "found that it is in use by process" in one["text"]
    assert not (run.folder / "folder-0" / "checkpoints").exists()  # nothing was written there


@pytest.mark.parametrize("who", [0, 1])
def test_a_smaller_batch_that_cannot_be_masked_is_refused_on_every_process(
    run: process_zoo.Run, who: int
) -> None:
    for index, one in enumerate(run.said(f"scalar-{who}")):
        assert one["error"] == ("BatchError" if index == who else "PeerError")
        assert "Padding cannot be masked out of this loss" in one["text"]
    assert run.said(f"scalar-{who}.step") == [1] * len(run.members)


def test_what_was_agreed_on_leaves_the_processes_usable(run: process_zoo.Run) -> None:
    first, last = values(run, "plain-"), values(run, "plain-1")
    assert first == last
    assert_one_state([one["stands"] for one in last], steps(10))
    assert last[0]["stands"]["ids"] == pytest.approx(steps(10)["ids"])

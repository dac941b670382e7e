"""What is kept of steps that go wrong, and of runs that die?"""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.data import LoaderPosition
from xtrainer.trainer import box_files
from xtrainer.trainer.box_files import (
    RecordError,
    batch_arrays,
    describe_batch,
    read_batch,
    read_records,
    write_record,
)

STEPS = 6
MASK = np.ones(4, bool)


@pytest.fixture(scope="module")
def stages() -> dict[str, probes.Repeatable]:
    """Trainers that stop at a refused step, skip it, or only count it."""
    policies: dict[str, dict[str, Any]] = {
        "stop": {},
        "skip": {"nonfinite_policy": "skip"},
        "count": {"check_for_nan": False},
        "groups": {"nonfinite_policy": "skip", "steps_per_dispatch": 3},
    }
    return {name: probes.Repeatable(probes.traced(**more)) for name, more in policies.items()}


def train(stage: probes.Repeatable, folder: Path, *bad: int, **config: Any) -> Any:
    trainer = stage.begin(folder=folder, **config)
    trainer.train_model(probes.numbered(STEPS, bad=bad), num_train_steps=STEPS)
    return trainer


def test_a_refused_step_is_told_with_all_that_is_needed_to_repeat_it(
    stages: dict[str, probes.Repeatable], tmp_path: Path
) -> None:
    trainer = train(stages["stop"], tmp_path, 4)
    (record,) = read_records(tmp_path).values()
    assert (record["why"], record["step"], record["epoch"], record["process"]) == (
        "refused", 4, 1, 0,
    )  # fmt: skip
    assert LoaderPosition.from_json(record["loader"]) == LoaderPosition(0, 3)
    key = jax.random.wrap_key_data(jnp.array(record["rng"]["data"], jnp.uint32))
    assert key == trainer.state.rng
    assert record["versions"]["jax"] == jax.__version__
    assert [row["step"] for row in record["rows"]] == [1, 2, 3][-len(record["rows"]) :]
    assert all("loss_mean" in row["metrics"] for row in record["rows"])
    leaves = {leaf["path"]: leaf for leaf in record["batch"]["leaves"]}
    assert leaves["ids"] == {
        "path": "ids", "dtype": "float32", "shape": [4], "nan": 0, "inf": 0,
        "min": 4.0, "max": 4.0, "mean": 4.0,
    }  # fmt: skip
    assert (leaves["inputs"]["nan"], leaves["inputs"]["mean"]) == (16, None)
    kept = read_batch(tmp_path, record, probes.one(0))
    assert kept is not None
    zoo.assert_same(kept[0], probes.one(4, bad=[4]))
    np.testing.assert_array_equal(kept[1], MASK)
    norms = record["norms"]
    assert norms["gradients"].keys() == norms["parameters"].keys()
    kernel = np.linalg.norm(np.asarray(trainer.state.params["Dense_0"]["kernel"]))
    assert norms["parameters"]["Dense_0/kernel"] == pytest.approx(float(kernel), rel=1e-6)
    assert norms["gradients"]["Dense_0/kernel"] == "nan"


@pytest.mark.parametrize("name", ["skip", "count", "groups"])
def test_refused_steps_that_end_no_run_are_told_with_their_own_batch(
    stages: dict[str, probes.Repeatable], tmp_path: Path, name: str
) -> None:
    train(stages[name], tmp_path, 2, 5, every=3)
    records = read_records(tmp_path)
    assert sorted(records) == [2, 5]
    for step, record in records.items():
        assert record["loader"]["batches"] == step - 1
        kept = read_batch(tmp_path, record, probes.one(0))
        assert kept is not None and kept[0]["ids"][0] == step


def test_the_first_records_of_a_start_are_kept(
    stages: dict[str, probes.Repeatable], tmp_path: Path
) -> None:
    train(stages["count"], tmp_path / "a", *range(1, STEPS + 1))
    assert sorted(read_records(tmp_path / "a")) == [1, 2, 3]


def test_what_was_recorded_by_an_earlier_start_stays(tmp_path: Path) -> None:
    first = write_record(tmp_path, {"format": 1, "step": 4, "why": "refused"}, None)
    assert first == tmp_path / "black_box" / "step_4"
    assert write_record(tmp_path, {"format": 1, "step": 4, "why": "error"}, None) is None
    assert read_records(tmp_path)[4]["why"] == "refused"
    assert [path.name for path in (tmp_path / "black_box").iterdir()] == ["step_4"]


@pytest.mark.parametrize("limit", [0, 99])  # it has 100
def test_a_large_batch_is_described_and_not_kept(tmp_path: Path, limit: int) -> None:
    trainer = probes.traced(
        logger=zoo.file_logger(tmp_path), black_box_max_bytes=limit, black_box_max_records=1
    )
    trainer.train_model(probes.numbered(2, bad=[2]), num_train_steps=2)
    (record,) = read_records(tmp_path).values()
    assert record["batch"]["file"] is None and str(limit) in record["batch"]["note"]
    assert len(record["batch"]["leaves"]) == 3
    assert read_batch(tmp_path, record, probes.one(0)) is None
    assert [path.name for path in (tmp_path / "black_box" / "step_2").iterdir()] == ["record.json"]


def test_nothing_is_written_where_it_is_not_wanted(tmp_path: Path) -> None:
    trainer = probes.traced(logger=zoo.file_logger(tmp_path), black_box=False)
    trainer.train_model(probes.numbered(2, bad=[2]), num_train_steps=2)
    assert not (tmp_path / "black_box").exists()


def test_a_good_run_writes_no_record(stages: dict[str, probes.Repeatable], tmp_path: Path) -> None:
    train(stages["stop"], tmp_path)
    assert not (tmp_path / "black_box").exists()


def test_an_error_is_told_with_its_traceback_and_without_values(
    stages: dict[str, probes.Repeatable], tmp_path: Path
) -> None:
    def fail(trainer: Any, *args: Any) -> None:
        secret = "hunter2"
        if trainer.global_step == 3:
            raise RuntimeError("what has happened", len(secret))

    callback = probes.acting("on_training_step", fail)
    trainer = stages["stop"].begin(callback, folder=tmp_path)
    with pytest.raises(RuntimeError, match="what has happened"):
        trainer.train_model(probes.numbered(STEPS), num_train_steps=STEPS)
    (record,) = read_records(tmp_path).values()
    assert (record["why"], record["step"]) == ("error", 4)
    assert record["loader"] == LoaderPosition(0, 3).to_json()
    assert record["error"]["type"] == "RuntimeError"
    assert "raise RuntimeError(" in record["error"]["traceback"]
    assert "'hunter2'" not in json.dumps(record).replace('secret = \\"hunter2\\"', "")
    assert "batch" not in record


def test_an_interruption_is_no_error(stages: dict[str, probes.Repeatable], tmp_path: Path) -> None:
    def stop(trainer: Any, *args: Any) -> None:
        raise KeyboardInterrupt

    trainer = stages["stop"].begin(probes.acting("on_training_step", stop), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_model(probes.numbered(STEPS), num_train_steps=STEPS)
    assert not (tmp_path / "black_box").exists()


def test_a_record_that_cannot_be_written_ends_no_run(
    stages: dict[str, probes.Repeatable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(box_files, "sync_tree", full)
    with caplog.at_level(logging.WARNING):
        trainer = train(stages["skip"], tmp_path, 3)
    assert trainer.stop_reason is xt.StopReason.FINISHED
    assert "No record of step 3 was written" in caplog.text
    assert "No space left" in caplog.text
    assert list((tmp_path / "black_box").iterdir()) == []


def test_norms_that_cannot_be_computed_leave_a_note(
    stages: dict[str, probes.Repeatable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: Any) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr(stages["skip"].trainer.black_box, "_norms", exhausted)
    train(stages["skip"], tmp_path, 2)
    (record,) = read_records(tmp_path).values()
    assert record["norms"] == {"note": "MemoryError('no memory is left')"}
    assert record["batch"]["file"] == "batch.npz"


ODD = {
    "bfloat16": jnp.array([1.5, jnp.nan, jnp.inf, -2.0], jnp.bfloat16),
    "float8": jnp.array([1.0, 2.0, 3.0, 4.0], jnp.float8_e4m3fn),
    "bool": np.array([True, False, True, True]),
    "int8": np.array([-128, 127, 0, 1], np.int8),
    "key": jax.random.split(jax.random.key(3), 4),
    "empty": np.zeros((4, 0), np.float32),
    "complex": np.array([1j, 2, 3, 4], np.complex64),
}


@pytest.mark.parametrize("name", ODD)
def test_arrays_of_every_kind_come_back(tmp_path: Path, name: str) -> None:
    batch = {name: ODD[name]}
    arrays = batch_arrays(batch, MASK, 2**20)
    assert not isinstance(arrays, str)
    record = {"format": 1, "step": 1, "batch": {"leaves": describe_batch(batch)}}
    write_record(tmp_path, record, arrays)
    kept = read_batch(tmp_path, read_records(tmp_path)[1], batch)
    assert kept is not None
    assert kept[0][name].dtype == ODD[name].dtype
    found, wanted = (np.asarray(zoo.host(tree)[name]) for tree in (kept[0], batch))
    assert (found.shape, found.tobytes()) == (wanted.shape, wanted.tobytes())


def test_statistics_are_those_of_the_finite_numbers() -> None:
    said = {leaf["path"]: leaf for leaf in describe_batch(ODD)}
    assert {k: said["bfloat16"][k] for k in ("min", "max", "mean", "nan", "inf")} == {
        "min": -2.0, "max": 1.5, "mean": -0.25, "nan": 1, "inf": 1,
    }  # fmt: skip
    assert (said["bool"]["min"], said["bool"]["mean"]) == (0.0, 0.75)
    assert (said["int8"]["min"], said["int8"]["max"]) == (-128.0, 127.0)
    assert said["key"]["impl"] == "threefry2x32" and "min" not in said["key"]
    assert said["empty"] == {"path": "empty", "dtype": "float32", "shape": [4, 0]}


def test_arrays_of_another_batch_are_refused(tmp_path: Path) -> None:
    batch = {"a": np.ones(4, np.float32)}
    arrays = batch_arrays(batch, MASK, 2**20)
    record: dict[str, Any] = {"format": 1, "step": 1, "batch": {"leaves": describe_batch(batch)}}
    assert not isinstance(arrays, str)
    write_record(tmp_path, record, arrays)
    with pytest.raises(RecordError, match=r"the leaves \['a'\], and batches .* \['b'\]"):
        read_batch(tmp_path, record, {"b": np.ones(4)})


def test_an_array_of_objects_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "black_box" / "step_1"
    folder.mkdir(parents=True)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(folder / "batch.npz", leaf_0=objects, row_mask=MASK)
    leaf: dict[str, Any] = {"path": "a", "dtype": "object", "shape": [1]}
    record: dict[str, Any] = {"format": 1, "step": 1, "batch": {"leaves": [leaf]}}
    with pytest.raises(RecordError, match="allow_pickle"):
        read_batch(tmp_path, record, {"a": objects})


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "step": 1}', '{"format": 1}'])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "black_box" / "step_1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    with pytest.raises(RecordError, match="expected"):
        read_records(tmp_path)

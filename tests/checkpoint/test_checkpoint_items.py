"""What one step holds."""

import dataclasses
import json
import platform
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.checkpoint import CheckpointItems, check_json, describe_leaves
from xtrainer.checkpoint.commit import read_json
from xtrainer.checkpoint.durable import write_json
from xtrainer.checkpoint.items import (
    META_KEYS,
    compare_leaves,
    float_from_json,
    float_to_json,
    git_revision,
    library_versions,
    listed,
    program_is,
)
from xtrainer.errors import CheckpointError


def test_meta_has_exactly_the_documented_keys_and_is_json(kit):
    meta = kit.items(kit.state(kit.mesh(8))).meta
    assert meta.keys() == META_KEYS
    assert json.loads(json.dumps(meta, allow_nan=False)) == meta
    assert meta["mesh"] == {"fsdp": 8}
    assert meta["process_count"] == 1


def test_leaves_are_described_by_path_with_typed_keys(kit):
    leaves = describe_leaves(kit.state(kit.mesh(8)))
    assert leaves["params/dense/kernel"] == {"shape": [16, 8], "dtype": "float32"}
    assert leaves["opt_state/0/mu/dense/bias"] == {"shape": [16], "dtype": "bfloat16"}
    assert leaves["rng"] == {"shape": [], "dtype": "key<fry>"}


def test_versions_name_python_and_every_library():
    versions = library_versions()
    assert versions["python"] == platform.python_version()
    assert versions["jax"] == jax.__version__
    assert {"flax", "optax", "orbax-checkpoint", "numpy", "xtrainer"} <= versions.keys()


def test_non_finite_metrics_are_kept_as_text(kit):
    metrics = {"a": float("nan"), "b": float("-inf"), "c": np.float32(0.5)}
    assert kit.items({"w": jnp.ones(2)}, metrics=metrics).meta["metrics"] == {
        "a": "nan",
        "b": "-inf",
        "c": 0.5,
    }


@pytest.mark.parametrize("value", [None, 0.1, 1e300, float("inf"), float("-inf")])
def test_floats_come_back_from_json(value):
    assert float_from_json(json.loads(json.dumps(float_to_json(value), allow_nan=False))) == value


@pytest.mark.parametrize("value", [True, [1.0], "one"])
def test_what_is_no_number_is_refused_as_a_metric(value):
    with pytest.raises(ValueError):
        float_from_json(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.int64(3), "loaders/train/index: found a numpy.int64"),
        ((1, 2), "loaders/train/index: found a builtins.tuple"),
        (float("inf"), "loaders/train/index: found inf"),
        ({1: 2}, "loaders/train/index: found the key 1 of type int"),
        (2**14001, "loaders/train/index: found a number of 14002 bits"),
        ([0, {"x": b"y"}], "loaders/train/index/1/x: found a builtins.bytes"),
        (jnp.ones(()), "loaders/train/index: found a .*Array"),
    ],
)
def test_what_is_not_json_is_refused_with_its_path(kit, value, message):
    with pytest.raises(CheckpointError, match=message):
        kit.items({"w": jnp.ones(2)}, loaders={"train": {"index": value}})


def test_all_values_that_are_not_json_are_reported_together():
    with pytest.raises(CheckpointError, match=r"(?s)m/a: found a builtins.set.*m/b: found nan"):
        check_json({"a": set(), "b": float("nan")}, "m")


def test_a_cycle_is_refused():
    cycle: dict = {}
    cycle["again"] = cycle
    with pytest.raises(CheckpointError, match="more than 100 levels"):
        check_json(cycle, "m")


def nest(levels, value):
    for _ in range(levels):
        value = [value]
    return value


def test_what_is_just_not_too_much_is_read_back(tmp_path):
    data = {"deep": nest(99, 1), "long": [2**13999, -(2**13999)]}
    check_json(data, "m")
    write_json(tmp_path / "data.json", data)
    assert read_json(tmp_path / "data.json") == data
    with pytest.raises(CheckpointError, match="more than 100 levels"):
        check_json({"deep": nest(100, 1)}, "m")


def test_what_would_be_too_much_to_read_is_not_written(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, {"kept": 1})
    with pytest.raises(CheckpointError, match="more than 4194304 items to write"):
        write_json(path, {"order": [0] * (2**22 + 1)})
    assert read_json(path) == {"kept": 1}


def test_meta_with_missing_and_unknown_keys_is_refused(small):
    meta = {**small.meta, "lodaers": {}}
    del meta["loaders"]
    with pytest.raises(CheckpointError, match=r"no \['loaders'\] and the unknown \['lodaers'\]"):
        CheckpointItems(small.state, meta)


def test_items_cannot_be_changed(small):
    with pytest.raises(dataclasses.FrozenInstanceError):
        small.state = {}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"n": np.ones(2)}}, "a/n: found a numpy.ndarray"),
        ({"a": 3}, "a: found a builtins.int"),
        ({"a": jnp.ones((0, 4))}, r"a: found an array of shape \(0, 4\) without elements"),
        ({"a": jnp.ones(4, jnp.uint4)}, "a: found dtype uint4"),
        ({"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}, "same name on disk"),
        ({"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}, "same name on disk"),
        ({}, "no leaf at all"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused_with_the_path(state, message):
    with pytest.raises(CheckpointError, match=message):
        describe_leaves(state)


def test_a_donated_leaf_is_refused():
    state = {"w": jnp.ones(4)}
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(state)
    with pytest.raises(CheckpointError, match="w: found an array that was already donated"):
        describe_leaves(state)


def test_compared_leaves_name_missing_unexpected_shape_and_dtype():
    saved = describe_leaves(
        {"old": jnp.ones(1), "s": jnp.ones(2), "d": jnp.ones(3), "k": jnp.ones(4)}
    )
    wanted = {
        "new": jnp.ones(1),
        "s": jnp.ones(5),
        "d": jnp.ones(3, jnp.bfloat16),
        "k": jnp.ones(4),
    }
    assert compare_leaves(saved, wanted) == [
        "d: dtype float32 in the checkpoint, bfloat16 wanted",
        "new: missing, the checkpoint does not have it",
        "old: unexpected, only the checkpoint has it",
        "s: shape (2,) in the checkpoint, (5,) wanted",
    ]


def test_long_lists_are_cut_after_twenty():
    lines = listed([f"leaf {i}" for i in range(23)]).splitlines()
    assert len(lines) == 21
    assert lines[-1].strip() == "- ... and 3 more"


def test_the_revision_is_that_of_the_program_which_a_command_runs(
    tmp_path: Path,
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "program.py"], ["commit", "-qm", "first"]):
        (tmp_path / "program.py").touch()
        subprocess.run([*git, *command], check=True)
    asked = [*git, "rev-parse", "HEAD"]
    head = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    before = git_revision()
    with program_is(tmp_path / "program.py"):
        assert git_revision() == head != before
    assert git_revision() == before

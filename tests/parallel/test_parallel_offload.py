"""Does the optimizer's state wait in host memory, with the same numbers and nothing copied?"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import MeshError
from xtrainer.parallel import partition, state_shardings
from xtrainer.tree import flatten_with_paths

SIZES = {
    "1": {"data_axis_size": 1},
    "8fsdp": {"data_axis_size": 1, "fsdp_axis_size": 8, "fsdp_min_weight_size": 8},
}


def make(sizes: str, offload: bool, folder: Path | None = None, **config: Any) -> Any:
    parallel = xt.ParallelConfig(offload_optimizer_state=offload, **SIZES[sizes])
    mesh = xt.build_mesh(parallel, jax.devices()[: int(sizes[0])])
    if folder is not None:
        config["logger"] = zoo.file_logger(folder)
        config["callbacks"] = [xt.ModelCheckpointConfig(max_to_keep=None)]
    adam = zoo.optimizer("adamw", 0.01, weight_decay=0.1, grad_clip_norm=1.0)
    model = {"batch_norm": True, "dropout": 0.1}
    return zoo.make_trainer(model=model, optimizer=adam, mesh=mesh, parallel=parallel, **config)


def kinds(tree: Any) -> dict[str, str]:
    return {path: leaf.sharding.memory_kind for path, leaf in flatten_with_paths(tree).items()}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_run_with_offloading_is_the_run_without(sizes: str, pieces: int) -> None:
    states = []
    for offload in (False, True):
        trainer = make(sizes, offload, gradient_accumulate_steps=pieces)
        with zoo.compilations() as compiled:
            trainer.train_model(zoo.loader(), zoo.loader(), num_epochs=2)
        assert compiled["train_step"] == compiled["eval_step"] == 1
        states.append(trainer.state)
    zoo.assert_same(*states)


@pytest.mark.parametrize("sizes", SIZES)
def test_what_mirrors_a_parameter_waits_in_host_memory(sizes: str) -> None:
    trainer = make(sizes, True)
    for _ in range(2):
        found = kinds(trainer.state.opt_state)
        hosted = {path for path, kind in found.items() if kind == "pinned_host"}
        moments = {path for path in found if re.search(r"/(mu|nu)/", path)}
        assert hosted == moments and moments
        rest = trainer.state.replace(opt_state=())
        assert set(kinds(rest).values()) == {"device"}
        trainer.train_model(zoo.loader(), num_epochs=1)
    assert set(kinds(make(sizes, False).state).values()) == {"device"}


@pytest.mark.parametrize("sizes", SIZES)
def test_an_offloaded_state_is_donated_whole(sizes: str) -> None:
    trainer = make(sizes, True)
    step = trainer.compiled_train_step.lower(trainer.state, zoo.classification_data(16)).compile()
    header = step.as_text().partition("\n")[0]
    aliased = {int(number) for number in re.findall(r"\}: \((\d+), \{", header)}
    assert set(range(len(jax.tree.leaves(trainer.state)))) <= aliased
    old = jax.tree.leaves(trainer.state)
    trainer.train_model(zoo.loader(16), num_train_steps=1)
    assert all(leaf.is_deleted() for leaf in old)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_run_goes_on_from_its_checkpoint(
    tmp_path: Path, sizes: str, before: bool, after: bool
) -> None:
    whole = make(sizes, before)
    whole.train_model(zoo.loader(), num_epochs=3)
    make(sizes, before, tmp_path).train_model(zoo.loader(), num_epochs=1)
    trainer = make(sizes, after, tmp_path)
    trainer.load_model()
    expected = kinds(make(sizes, after).state)
    assert kinds(trainer.state) == expected
    trainer.train_model(zoo.loader(), num_epochs=3)
    zoo.assert_same(trainer.state, whole.state)
    assert kinds(trainer.state) == expected


def test_refused_steps_leave_the_offloaded_state_alone() -> None:
    trainer = make("1", True, nonfinite_policy="skip")
    before = zoo.host(trainer.state.opt_state)
    bad = zoo.classification_data(16)
    bad = xt.Batch(inputs=np.full_like(bad.inputs, np.nan), targets=bad.targets)
    trainer.train_model([bad], num_train_steps=1)
    assert trainer.progress.skipped == 1
    zoo.assert_same(trainer.state.opt_state, before)


def test_devices_without_host_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        process_index, device_kind = 0, "Pocket"

        def addressable_memories(self) -> list[Any]:
            return [SimpleNamespace(kind="device")]

    mesh: Any = SimpleNamespace(devices=np.array([Device()]), axis_names=(), shape={})
    state = xt.TrainState.create({"w": np.ones(2)}, optax.adam(0.1), jax.random.key(0))
    config = xt.ParallelConfig(offload_optimizer_state=True)
    message = r"kind 'Pocket' with the memories \['device'\], expected 'pinned_host'"
    with pytest.raises(MeshError, match=message):
        state_shardings(state, mesh, config)
    assert partition.HOST_MEMORY == "pinned_host"

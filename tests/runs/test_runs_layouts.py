"""Does a run go on upon any other layout of devices? Saved upon one, restored upon each other."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import probes
import pytest
import zoo

import xtrainer as xt

SAVED, END = 5, 25
SAVING = xt.ModelCheckpointConfig()
SHARDED = {"fsdp_axis_name": "fsdp", "fsdp_min_weight_size": 0}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1": (1, {}),
    "8": (8, {}),
    "2x4": (8, {"fsdp_axis_size": 4, **SHARDED}),
    "4": (4, {"fsdp_axis_size": 4, **SHARDED}),
}
"""Devices, and how they are used: one, data, data and FSDP, FSDP."""


def repeatable(layout: str) -> probes.Repeatable:
    """Returns a trainer upon a layout."""
    count, fields = LAYOUTS[layout]
    parallel = xt.ParallelConfig(**fields)
    mesh = xt.build_mesh(parallel, jax.devices()[:count])
    optimizer = zoo.optimizer("adam", lr=0.01)
    return probes.Repeatable(zoo.make_trainer(mesh=mesh, parallel=parallel, optimizer=optimizer))


@pytest.fixture(scope="module")
def trainers() -> dict[str, probes.Repeatable]:
    """Gives a trainer for each layout."""
    return {layout: repeatable(layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def saved(
    trainers: dict[str, probes.Repeatable], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any, Any]]:
    """Gives, by layout, the folder of a run cut short, its state then, and the whole run's end."""
    found = {}
    for layout, trainer in trainers.items():
        folder = tmp_path_factory.mktemp("run") / "cut"
        whole = trainer.begin()
        whole.train_model(zoo.loader(64, shuffle=True), num_train_steps=END)
        end = zoo.host(whole.state.params)
        cut = trainer.begin(SAVING, folder=folder)
        cut.train_model(zoo.loader(64, shuffle=True), num_train_steps=SAVED)
        found[layout] = folder, zoo.host(cut.state), end
    return found


def test_the_layouts_differ(trainers: dict[str, probes.Repeatable]) -> None:
    whole = lambda leaf: leaf.sharding.is_fully_replicated  # noqa: E731
    leaves = {name: jax.tree.leaves(t.trainer.state.params) for name, t in trainers.items()}
    split = [name for name, params in leaves.items() if not all(map(whole, params))]
    assert split == ["2x4", "4"]
    assert [params[0].sharding.num_devices for params in leaves.values()] == [1, 8, 8, 4]


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(LAYOUTS, 2)])
def test_a_run_goes_on_upon_another_layout(
    trainers: dict[str, probes.Repeatable],
    saved: dict[str, tuple[Path, Any, Any]],
    first: str,
    second: str,
    tmp_path: Path,
) -> None:
    folder, state, end = saved[first]
    shutil.copytree(folder, tmp_path / "run")
    trainer = trainers[second].begin(SAVING, folder=tmp_path / "run")
    trainer.load_model()
    assert trainer.global_step == SAVED
    zoo.assert_same(trainer.state, state)
    trainer.train_model(zoo.loader(64, shuffle=True), num_train_steps=END)
    zoo.assert_close(trainer.state.params, end, rtol=1e-5, atol=1e-6)

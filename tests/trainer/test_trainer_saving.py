"""Is what was saved taken back, in whole or in parts, and what does not fit refused?"""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import CheckpointError, CheckpointNotFoundError, LoaderError

SAVING = xt.ModelCheckpointConfig(monitor="loss", max_to_keep=None)


def make(**more: Any) -> Any:
    """Returns a new trainer with BatchNorm and Adam on one device; it writes nothing."""
    config = {"model": {"batch_norm": True}, "optimizer": zoo.optimizer("adam", lr=0.3)}
    return zoo.make_trainer(**{**config, "mesh": zoo.devices(1), **more})


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives such a trainer, compiled once for this file."""
    return probes.Repeatable(make())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Gives a run of six steps with checkpoints at 2, 4 and 6, stopped in its second pass."""
    folder = tmp_path_factory.mktemp("saving") / "run"
    trainer = make(logger=zoo.file_logger(folder), callbacks=[SAVING], check_val_every_n_steps=2)
    trainer.train_model(zoo.loader(64, shuffle=True), zoo.loader(24), num_train_steps=6)
    losses = {step: row["loss"] for step, row in zoo.rows_of(folder, "val").items()}
    best = min(losses, key=losses.get)  # type: ignore[arg-type]
    assert best < 6
    return SimpleNamespace(folder=folder, trainer=trainer, best=best)


@pytest.fixture
def fresh(stage: probes.Repeatable) -> Any:
    """Gives a trainer at step 0 that writes nothing."""
    return stage.begin()


# load_model


def test_nothing_to_load_is_an_error(stage: probes.Repeatable, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="found no checkpoint"):
        stage.begin(SAVING, folder=tmp_path / "none").load_model()


def test_nothing_to_load_may_be_a_warning(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = stage.begin(SAVING, folder=tmp_path / "none")
    with caplog.at_level(logging.WARNING, logger="xtrainer"):
        assert trainer.load_model(raise_if_not_found=False) is None
    assert "No checkpoint was loaded" in caplog.text


def test_a_step_that_is_not_there_is_an_error_that_lists_the_steps(
    stage: probes.Repeatable, run: SimpleNamespace
) -> None:
    with pytest.raises(CheckpointNotFoundError, match="found no step 3, expected one of 2, 4, 6"):
        stage.begin(SAVING, folder=run.folder).load_model(3)


def test_a_trainer_without_a_folder_cannot_load(fresh: Any) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match="neither a ModelCheckpoint .* nor a log_path"
    ):
        fresh.load_model()


def test_without_a_checkpoint_callback_the_run_folder_is_looked_in(
    stage: probes.Repeatable, run: SimpleNamespace
) -> None:
    trainer = stage.begin(folder=run.folder)
    assert trainer.load_model() == 6
    zoo.assert_same(trainer.state, run.trainer.state)


def test_a_checkpoint_of_another_model_changes_nothing(run: SimpleNamespace) -> None:
    trainer = make(model={"batch_norm": True, "width": 5}, logger=zoo.file_logger(run.folder))
    before = zoo.host(trainer.state)
    with pytest.raises(CheckpointError, match=r"params/Dense_0/kernel: shape \(4, 8\)"):
        trainer.load_model()
    zoo.assert_same(trainer.state, before)
    assert trainer.global_step == 0


def test_without_a_saved_optimizer_the_model_is_taken_with_a_warning(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = xt.ModelCheckpointConfig(save_optimizer_state=False)
    first = stage.begin(callback, folder=tmp_path)
    first.train_model(zoo.loader(32), num_epochs=1)
    params, collections = zoo.host((first.state.params, first.state.mutable_variables))
    second = stage.begin(callback, folder=tmp_path)
    with caplog.at_level(logging.WARNING, logger="xtrainer"):
        second.load_model()
    assert "holds no optimizer state: training would begin at step 0" in caplog.text
    zoo.assert_same(second.state.params, params)
    zoo.assert_same(second.state.mutable_variables, collections)
    assert second.global_step == int(second.state.step) == 0


# load_pretrained_model


def test_a_pretrained_model_comes_with_all_of_its_training(
    run: SimpleNamespace, fresh: Any
) -> None:
    assert fresh.load_pretrained_model(run.folder) == 6
    zoo.assert_same(fresh.state, run.trainer.state)
    assert fresh.progress == run.trainer.progress


def test_a_pretrained_model_without_its_optimizer_begins_at_step_0(
    run: SimpleNamespace, fresh: Any
) -> None:
    before = zoo.host((fresh.state.opt_state, fresh.state.rng, fresh.state.step))
    assert fresh.load_pretrained_model(run.folder, load_optimizer=False) == 6
    zoo.assert_same(fresh.state.params, run.trainer.state.params)
    zoo.assert_same(fresh.state.mutable_variables, run.trainer.state.mutable_variables)
    zoo.assert_same((fresh.state.opt_state, fresh.state.rng, fresh.state.step), before)
    assert fresh.progress == xt.Progress()


def test_a_pretrained_model_of_another_optimizer_can_be_fine_tuned(run: SimpleNamespace) -> None:
    trainer = make(optimizer=zoo.optimizer("sgd", lr=0.01))
    with pytest.raises(CheckpointError, match="opt_state"):
        trainer.load_pretrained_model(run.folder)
    trainer.load_pretrained_model(run.folder, load_optimizer=False)
    zoo.assert_same(trainer.state.params, run.trainer.state.params)


@pytest.mark.parametrize("which", [{"load_best": True}, {"step_idx": "best"}])
def test_the_best_step_of_another_run_can_be_taken(
    run: SimpleNamespace, fresh: Any, which: dict[str, Any]
) -> None:
    assert fresh.load_pretrained_model(run.folder, **which) == run.best


@pytest.mark.parametrize("path", ["checkpoints", "checkpoints/4"])
def test_the_path_may_be_that_of_the_checkpoints_or_of_a_step(
    run: SimpleNamespace, fresh: Any, path: str
) -> None:
    assert fresh.load_pretrained_model(run.folder / path, 4) == 4


@pytest.mark.parametrize("delete", [True, False])
def test_the_old_parameters_are_freed_on_request(
    run: SimpleNamespace, fresh: Any, delete: bool
) -> None:
    old = fresh.state
    fresh.load_pretrained_model(run.folder, delete_params_before_loading=delete)
    leaves = jax.tree.leaves((old.params, old.mutable_variables))
    assert {leaf.is_deleted() for leaf in leaves} == {delete}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fresh.state))


def test_a_failed_load_keeps_the_old_parameters(run: SimpleNamespace) -> None:
    trainer = make(model={"width": 5})
    before = zoo.host(trainer.state)
    with pytest.raises(CheckpointError, match="differs from the one to restore"):
        trainer.load_pretrained_model(run.folder)
    zoo.assert_same(trainer.state, before)


def test_loaders_are_put_where_the_pretrained_run_had_them(
    run: SimpleNamespace, fresh: Any
) -> None:
    train = zoo.loader(64, shuffle=True)
    fresh.load_pretrained_model(run.folder, 2, train_loader=train)
    fresh.train_model(train, num_train_steps=6)
    zoo.assert_same(fresh.state, run.trainer.state)


def test_another_run_is_only_read(run: SimpleNamespace, fresh: Any) -> None:
    before = zoo.files_in(run.folder)
    fresh.load_pretrained_model(run.folder)
    fresh.train_model(zoo.loader(64), num_train_steps=7)
    assert zoo.files_in(run.folder) == before


# load_data_loaders and restore_data_loaders


def test_loaders_are_put_where_they_were_at_a_step(
    stage: probes.Repeatable, run: SimpleNamespace
) -> None:
    trainer = stage.begin(folder=run.folder)
    train = zoo.loader(64, shuffle=True)
    trainer.load_data_loaders(2, train_loader=train)
    assert train.get_state() == {"pass": 0, "batch": 2}


def test_loaders_are_put_where_the_present_step_left_them(
    stage: probes.Repeatable, run: SimpleNamespace
) -> None:
    trainer = stage.begin(folder=run.folder)
    trainer.load_model(4)
    train, val = zoo.loader(64, shuffle=True), zoo.loader(24)
    trainer.load_data_loaders(train_loader=train, val_loader=val)
    trainer.init_logger(None)
    trainer.train_model(train, num_train_steps=6)
    zoo.assert_same(trainer.state, run.trainer.state)


def test_a_training_loader_whose_position_was_not_saved_is_an_error(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    callback = xt.ModelCheckpointConfig(save_dataloader_state=False)
    trainer = stage.begin(callback, folder=tmp_path)
    trainer.train_model(zoo.loader(32), num_epochs=1)
    with pytest.raises(CheckpointError, match="save_dataloader_state=False; leave train_loader"):
        trainer.load_data_loaders(train_loader=zoo.loader(32))


@pytest.mark.parametrize("wrapped", [True, False])
def test_loaders_are_restored_from_a_dictionary_of_states(wrapped: bool) -> None:
    loader = zoo.loader(64, shuffle=True)
    expected = list(loader)[1:]
    state: Any = {"pass": 0, "batch": 1}
    if wrapped:
        state = {"pass_index": 0, "batches": 1, "state": state}
    other = zoo.loader(64, shuffle=True)
    xt.TrainerModule.restore_data_loaders({"train": state}, train_loader=other, val_loader=[])
    zoo.assert_same(list(other), expected)


def test_a_loader_without_a_state_cannot_be_restored_from_a_dictionary() -> None:
    with pytest.raises(LoaderError, match=r"'val' loader is a list without get_state\(\)"):
        xt.TrainerModule.restore_data_loaders({"val": {}}, val_loader=[])


# restore_model


def test_a_state_comes_back_from_a_dictionary(run: SimpleNamespace, fresh: Any) -> None:
    names = ("params", "step", "opt_state", "mutable_variables", "rng")
    given = {name: getattr(run.trainer.state, name) for name in names}
    fresh.restore_model(given)
    zoo.assert_same(fresh.state, run.trainer.state)
    assert fresh.global_step == 6
    fresh.train_model(zoo.loader(32), num_train_steps=7)  # its buffers are its own: donated
    zoo.assert_same(given["params"], run.trainer.state.params)


def test_parameters_from_numpy_are_enough(fresh: Any) -> None:
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), zoo.host(fresh.state.params))
    opt_state = zoo.host(fresh.state.opt_state)
    fresh.restore_model({"params": params})
    zoo.assert_same(fresh.state.params, params)
    zoo.assert_same(fresh.state.opt_state, opt_state)
    assert fresh.global_step == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("params"), r"keys \['step'\], expected 'params'"),
        (lambda d: d.update(parms={}), r"\['params', 'parms', 'step'\], expected 'params'"),
        (lambda d: d["params"].pop("Dense_0"), "params/Dense_0/kernel: missing"),
        (lambda d: d["params"].update(extra=np.zeros(2)), "extra: not in the trainer's state"),
        (
            lambda d: d["params"]["Dense_0"].update(bias=np.zeros(7, np.float32)),
            r"Dense_0/bias: found float32\[7\], expected float32\[8\]",
        ),
        (
            lambda d: d["params"]["Dense_0"].update(bias=np.zeros(8, np.float16)),
            r"Dense_0/bias: found float16\[8\], expected float32\[8\]",
        ),
        (lambda d: d.update(step=np.zeros((), np.float32)), r"step: found float32\[\]"),
    ],
)
def test_a_dictionary_that_does_not_fit_changes_nothing(
    fresh: Any, change: Any, message: str
) -> None:
    before = zoo.host(fresh.state)
    given = {"params": zoo.host(fresh.state.params), "step": np.ones((), np.int32)}
    change(given)
    with pytest.raises(CheckpointError, match=message):
        fresh.restore_model(given)
    zoo.assert_same(fresh.state, before)


# What a checkpoint says of itself.


def test_a_checkpoint_holds_the_batch_the_configs_and_the_positions(run: SimpleNamespace) -> None:
    from xtrainer.checkpoint import read_meta

    meta = read_meta(run.folder / "checkpoints" / "6")
    assert set(meta["config"]) == {"trainer", "model", "optimizer"}
    assert meta["progress"]["step"] == 6
    assert meta["loaders"]["train"]["state"] == {"pass": 1, "batch": 2}
    assert meta["batch_spec"]["kind"] == "Batch"
    assert meta["metrics"].keys() >= {"loss", "accuracy"}


def test_the_restored_rng_is_a_typed_key(run: SimpleNamespace, fresh: Any) -> None:
    fresh.load_pretrained_model(run.folder)
    assert jnp.issubdtype(fresh.state.rng.dtype, jax.dtypes.prng_key)

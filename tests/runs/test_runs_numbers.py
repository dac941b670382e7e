"""Are numbers of steps, epochs, rows and seeds checked where they are given, and kept as ints?"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.callbacks import EarlyStoppingConfig, JaxProfilerConfig
from xtrainer.checkpoint import choose_usable, find_step, read_meta
from xtrainer.config import check_configs
from xtrainer.counts import MAX_COUNT
from xtrainer.errors import BatchError, CheckpointError, ConfigError, LoaderError, StepError
from xtrainer.loop import make_plan

NO_NUMBERS = [True, np.True_, 2.0, np.float32(2), "2", -7, np.int64(-7), 2**31, np.int64(2**40)]
"""What is no number of steps; -1 often has a meaning of its own."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives a trainer that has taken five steps, all of them saved, told by NumPy's numbers."""
    folder = tmp_path_factory.mktemp("run")
    n = np.int64
    trainer = zoo.make_trainer(
        logger=xt.LoggerConfig(log_path=str(folder), log_every_n_steps=n(2)),
        callbacks=[xt.ModelCheckpointConfig(every_n_steps=n(1), max_to_keep=None)],
        check_val_every_n_steps=n(2),
        gradient_accumulate_steps=np.int8(2),
        seed=np.uint32(3),
    )
    loader = zoo.loader(32, batch_size=np.int32(8))  # type: ignore[arg-type]
    trainer.train_model(loader, zoo.loader(), num_train_steps=n(5), steps_per_epoch=n(3))
    return trainer


def whole_numbers(value: Any) -> list[Any]:
    """Returns all numbers in a tree that are not floats."""
    leaves = jax.tree.leaves(value)
    return [x for x in leaves if not isinstance(x, str | float | bool) and x is not None]


def test_numpy_numbers_train_and_are_kept_as_those_of_python(trained: Any) -> None:
    assert trained.global_step == 5 and type(trained.global_step) is int
    config = trained.trainer_config
    kept = [config.seed, config.check_val_every_n_steps, config.logger.log_every_n_steps,
            config.callbacks[0].every_n_steps, config.gradient_accumulate_steps]  # fmt: skip
    assert kept == [3, 2, 2, 1, 2] and all(type(number) is int for number in kept)
    meta = read_meta(choose_usable(trained.log_path).folder)
    assert all(type(number) is int for number in whole_numbers(meta))
    assert meta["config"]["trainer"]["seed"] == 3
    assert json.loads((trained.log_path / "config.json").read_text())["trainer"]["seed"] == 3


@pytest.mark.parametrize("name", ["num_train_steps", "num_epochs", "steps_per_epoch"])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_train_model_refuses_before_anything_is_done(trained: Any, name: str, value: Any) -> None:
    given = {"num_epochs": 1, name: value} if name == "steps_per_epoch" else {name: value}
    with pytest.raises(ConfigError, match=f"found {name}=.*, expected a whole number"):
        trained.train_model(None, **given)


def test_epochs_that_make_too_many_steps_are_refused(trained: Any) -> None:
    epochs = MAX_COUNT // 4 + 1
    assert make_plan(num_epochs=epochs - 1).total_steps(4) == MAX_COUNT - 3
    assert make_plan(num_epochs=epochs, steps_per_epoch=8).total_steps(2) == 2 * epochs
    with pytest.raises(ConfigError, match=rf"num_epochs={epochs} of 4 steps, which are 2147483648"):
        trained.train_model(zoo.loader(32, batch_size=8), num_epochs=epochs)
    with pytest.raises(ConfigError, match="expected at most 2147483647 in all"):
        make_plan(num_epochs=2**20, steps_per_epoch=2**20).total_steps(None)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, 1e400], ids=repr)
def test_a_step_to_load_is_one(trained: Any, value: Any) -> None:
    if isinstance(value, str):
        value = "newest"
    if value != -1:
        with pytest.raises(CheckpointError, match="step_idx: found .*, expected a step"):
            trained.load_model(value)
        with pytest.raises(CheckpointError, match="step_idx: found .*, expected a step"):
            trained.load_pretrained_model(trained.log_path, value)
        with pytest.raises(CheckpointError, match="step_idx: found .*, expected a step"):
            trained.load_data_loaders(value, train_loader=zoo.loader())
    with pytest.raises(CheckpointError, match="step_idx: found .*, expected a step"):
        find_step(trained.log_path, value)
    with pytest.raises(CheckpointError, match="step_idx: found .*, expected a step"):
        choose_usable(trained.log_path, value)
    if not isinstance(value, str):
        with pytest.raises(ConfigError, match="resume: found .*, expected 'auto'"):
            trained.train_model(zoo.loader(), num_train_steps=6, resume=value)


@pytest.mark.parametrize("kind", [np.int32, np.uint64])
def test_a_step_of_numpy_is_that_step_and_not_the_newest(trained: Any, kind: Any) -> None:
    fresh = zoo.make_trainer(gradient_accumulate_steps=2, seed=3)
    assert find_step(trained.log_path, kind(2)).name == "2"
    assert choose_usable(trained.log_path, kind(3)).folder.name == "3"
    assert fresh.load_pretrained_model(trained.log_path / "checkpoints", kind(4)) == 4
    assert fresh.global_step == 4 and type(fresh.global_step) is int
    assert fresh.load_pretrained_model(trained.log_path / "checkpoints", np.int8(-1)) == 5


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_a_step_is_not_set_to_what_none_can_be(trained: Any, value: Any) -> None:
    given = {"params": trained.state.params, "step": value}
    with pytest.raises(CheckpointError, match="step: found .*, expected a whole number"):
        trained.restore_model(given)
    with pytest.raises(CheckpointError, match="step: found -2, expected a whole number >= 0"):
        trained.restore_model({**given, "step": jnp.int32(-2)})
    assert trained.global_step == 5


@pytest.mark.parametrize("step", [3, np.int64(3), np.array(3, np.int32)])
def test_a_step_can_be_set_by_a_number(trained: Any, step: Any) -> None:
    fresh = zoo.make_trainer()
    fresh.restore_model({"params": fresh.state.params, "step": step})
    assert fresh.global_step == 3 and type(fresh.global_step) is int
    assert fresh.state.step.dtype == jnp.int32 and int(fresh.state.step) == 3


COUNTS = {
    "gradient_accumulate_steps": xt.TrainerConfig,
    "check_val_every_n_epoch": xt.TrainerConfig,
    "check_val_every_n_steps": xt.TrainerConfig,
    "max_consecutive_nonfinite": xt.TrainerConfig,
    "max_steps_in_flight": xt.TrainerConfig,
    "steps_per_dispatch": xt.TrainerConfig,
    "log_every_n_steps": xt.LoggerConfig,
    "every_n_steps": xt.ModelCheckpointConfig,
    "every_n_epochs": xt.ModelCheckpointConfig,
    "patience_steps": EarlyStoppingConfig,
    "profile_first_step": JaxProfilerConfig,
    "profile_n_steps": JaxProfilerConfig,
    "warmup_steps": xt.SchedulerConfig,
    "cooldown_steps": xt.SchedulerConfig,
    "decay_steps": xt.SchedulerConfig,
    "loss_scale_growth_steps": xt.PrecisionConfig,
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_every_count_of_a_config_is_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"part.{name}: found .*, expected "):
        check_configs(part=COUNTS[name](**{name: value}))


@pytest.mark.parametrize("name", COUNTS)
def test_every_count_of_a_config_can_be_numpy_s(name: str) -> None:
    config = COUNTS[name](**{name: np.int64(3)})
    assert type(getattr(config, name)) is int
    assert type(config.to_dict()[name]) is int
    lines = []
    try:
        check_configs(part=config)
    except ConfigError as error:
        lines = [line for line in error.problems if f"part.{name}: found 3 " in line]
    assert lines == []


def test_steps_in_the_arguments_of_a_schedule_of_optax_are_checked() -> None:
    config = xt.SchedulerConfig(
        name="optax.linear_schedule",
        kwargs={"init_value": 1.0, "end_value": 0.0, "transition_steps": 2**31},
    )
    with pytest.raises(ConfigError, match="kwargs.transition_steps: found 2147483648, expected"):
        check_configs(scheduler=config)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40 + 3, True, 1.0, np.int64(-1), "0"])
def test_a_seed_that_no_key_can_hold_is_refused_everywhere(seed: Any) -> None:
    init = lambda x, rng: {"params": {"w": jnp.zeros(2)}}  # noqa: E731
    with pytest.raises(ConfigError, match="seed: found"):
        xt.init_state(init, jnp.ones((4, 2)), optax.sgd(0.1), seed=seed)
    with pytest.raises(StepError, match="seed_eval: found"):
        xt.StepSettings(seed_eval=seed)
    for name in ("seed", "seed_eval"):
        with pytest.raises(ConfigError, match=f"{name}: found"):
            check_configs(trainer=xt.TrainerConfig(**{name: seed}))


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0], ids=repr)
def test_loaders_and_steps_refuse_what_is_no_number(value: Any) -> None:
    with pytest.raises(LoaderError, match="batch_size="):
        xt.ArrayLoader({"inputs": np.zeros(4)}, batch_size=value)
    with pytest.raises(LoaderError, match="batch_size="):
        xt.GrainLoader([1, 2], batch_size=value)
    with pytest.raises(StepError, match="accumulate_steps: found"):
        xt.StepSettings(accumulate_steps=value)


def test_rows_of_a_batch_are_a_number(trained: Any) -> None:
    folder = choose_usable(trained.log_path).folder
    for value in (True, 4.0, 2**31):
        with pytest.raises(BatchError, match="batch_size: found"):
            type(trained).load_from_checkpoint(folder, batch_size=value)  # type: ignore[arg-type]
    batch = type(trained).load_from_checkpoint(folder, batch_size=np.int64(4)).exmp_batch
    assert jax.tree.leaves(batch)[0].shape[0] == 4


@pytest.mark.parametrize("value", ["9999999999", "1.5", "x", "9" * 5000])
@pytest.mark.parametrize("option", ["--kills", "--at", "--save-every"])
def test_the_command_line_refuses_a_number_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    from xtrainer.cli.main import main

    assert main(["verify-resume", str(tmp_path / "x.py"), option, value]) == 2
    assert "expected a number <= 2147483647" in capsys.readouterr().err

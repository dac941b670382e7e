"""Are the configs of a trainer and of its model checked before anything is built?"""

from typing import Any

import pytest

import xtrainer as xt
from xtrainer.config import check_configs
from xtrainer.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "seed: found -1, expected 0 <= seed < 2"),
        ("seed", 2**32, r"seed: found 4294967296, expected 0 <= seed < 2\*\*32"),
        ("seed_eval", 2**40, "seed_eval: found 1099511627776"),
        ("seed", 1.5, r"seed: found 1.5 \(float\), expected a whole number"),
        ("debug", "False", r"debug: found 'False' \(str\), expected True or False"),
        ("gradient_accumulate_steps", 0, "found 0, expected a number >= 1"),
        ("gradient_accumulate_steps", -4, "found -4, expected a number >= 1"),
        ("max_steps_in_flight", 0, "max_steps_in_flight: found 0, expected a number >= 1"),
        ("max_consecutive_nonfinite", 0, "max_consecutive_nonfinite: found 0"),
        ("check_val_every_n_epoch", 0, "found 0, expected >= 1, or -1 for no validation"),
        ("check_val_every_n_steps", -2, "found -2, expected >= 1, or -1 for no validation"),
        ("checks_per_epoch", 0, "checks_per_epoch: found 0, expected >= 1, or -1"),
        ("hang_timeout_s", float("inf"), "hang_timeout_s: found inf, expected seconds, or 0 for"),
        ("save_timeout_s", float("nan"), "save_timeout_s: found nan, expected seconds, or 0 for"),
        ("startup_timeout_s", "60", r"startup_timeout_s: found '60' \(str\)"),
        ("on_hang", "stop", "found 'stop'. .*end"),
        ("nonfinite_policy", "stopp", "found 'stopp'. Did you mean 'stop'"),
        ("default_train_log_modes", ["mean", "maks"], "found 'maks'. Did you mean 'max'"),
        ("intermediates_log_modes", ["avg"], "intermediates_log_modes: found 'avg'"),
        ("default_train_log_modes", "mean", r"found 'mean' \(str\), expected a list"),
        ("callbacks", [3], r"callbacks\[0\]: found 3 \(int\), expected a CallbackConfig"),
        ("logger", "runs", r"logger: found 'runs' \(str\), expected a LoggerConfig"),
        (
            "logger",
            xt.LoggerConfig(log_every_n_steps=0),
            r"logger.log_every_n_steps: found 0, expected a number of steps >= 1",
        ),
        (
            "callbacks",
            [xt.ModelCheckpointConfig(every_n_steps=-3, max_to_keep=0)],
            r"(?s)callbacks\[0\].every_n_steps: found -3.*callbacks\[0\].max_to_keep: found 0",
        ),
        (
            "precision",
            xt.PrecisionConfig(compute_dtype="bfloat"),
            "precision.compute_dtype: found 'bfloat'. Did you mean 'bfloat16'",
        ),
    ],
)
def test_a_value_that_cannot_work_is_an_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_configs(trainer=xt.TrainerConfig(**{field: value}))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_every_seed_a_key_can_hold_is_taken(seed: int) -> None:
    check_configs(trainer=xt.TrainerConfig(seed=seed, seed_eval=seed))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 1),
        ({"nonfinite_policy": "skip"}, 10),
        ({"nonfinite_policy": "skip", "max_consecutive_nonfinite": 3}, 3),
        ({"check_for_nan": False}, None),
        ({"check_for_nan": False, "nonfinite_policy": "skip"}, None),
    ],
)
def test_the_policy_says_how_many_refused_steps_end_a_run(config: Any, limit: int | None) -> None:
    assert xt.TrainerConfig(**config).nonfinite_limit == limit


def test_a_model_name_that_is_not_registered_is_an_error_with_the_nearest_name() -> None:
    xt.register_model("config_small_mlp")(lambda: None)
    with pytest.raises(ConfigError, match="'config_smal_mlp'. Did you mean 'config_small_mlp'"):
        check_configs(model=xt.ModelConfig(model_class="config_smal_mlp"))


def test_all_mistakes_of_all_configs_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check_configs(
            trainer=xt.TrainerConfig(seed=-1, check_val_every_n_steps=0),
            model=xt.ModelConfig(
                model_class="nothing_like_it", parallel=xt.ParallelConfig(data_axis_size=0)
            ),
            optimizer=xt.OptimizerConfig(name="adamm", scheduler=xt.SchedulerConfig(lr=-1.0)),
        )
    paths = [problem.split(":")[0] for problem in caught.value.problems]
    assert set(paths) >= {
        "trainer.seed",
        "trainer.check_val_every_n_steps",
        "model.model_class",
        "model.parallel.axis sizes",
        "optimizer.name",
        "optimizer.scheduler.lr",
    }
    assert str(caught.value).startswith(f"{len(paths)} mistakes in the configuration:")


def test_a_config_of_the_command_line_with_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="gradient_acumulate_steps.*Did you mean"):
        xt.Config.from_config_dict(xt.TrainerConfig, {"gradient_acumulate_steps": 2})


def test_trainer_and_model_configs_come_back_from_json() -> None:
    trainer = xt.TrainerConfig(
        seed=2**32 - 1,
        callbacks=[xt.ModelCheckpointConfig(monitor="loss"), xt.LearningRateMonitorConfig()],
        logger=xt.LoggerConfig(log_path="runs", log_tools=[xt.FileLoggerConfig(csv=False)]),
        precision=xt.PrecisionConfig(compute_dtype="bfloat16"),
    )
    model = xt.ModelConfig(
        model_config={"width": 4, "name": None, "sizes": (1, 2)},
        parallel=xt.ParallelConfig(param_rules=((".*kernel", ("fsdp", None)),)),
    )
    assert xt.Config.from_dict(xt.TrainerConfig, trainer.to_dict()) == trainer
    assert xt.Config.from_dict(xt.ModelConfig, model.to_dict()) == model

"""Does a metric's name tell whether it is better small or large?"""

import logging
from pathlib import Path
from typing import Any

import pytest

import xtrainer as xt
from xtrainer.errors import ConfigError
from xtrainer.metrics import better_when, direction_of


@pytest.mark.parametrize(
    "name",
    [
        "loss", "val_a_loss", "train/loss", "val/loss", "loss_mean", "Loss", "token-loss", "loss_1",
        "perplexity", "val_ppl", "bits_per_byte", "set_bits_per_byte", "error", "error_rate", "mae",
        "mse", "rmse", "mean_squared_error", "nll", "negative_log_likelihood", "cross_entropy",
        "word_error_rate",
    ],
)  # fmt: skip
def test_what_is_lost_or_wrong_is_better_small(name: str) -> None:
    assert better_when(name) == "min"


@pytest.mark.parametrize(
    "name",
    [
        "accuracy", "val_b_accuracy", "train/accuracy_mean", "acc", "f1", "macro_f1_score", "auc",
        "roc_auc", "precision", "recall", "recall@10", "iou", "bleu", "r2", "log_likelihood",
        "accuracy_top_5", "top5_accuracy",
    ],
)  # fmt: skip
def test_what_is_right_is_better_large(name: str) -> None:
    assert better_when(name) == "max"


@pytest.mark.parametrize("name", ["score", "", "12", "grad_norm", "glossy", "loss_of_data"])
def test_of_other_names_nothing_is_known(name: str) -> None:
    assert better_when(name) is None
    assert direction_of("auto", name) == "min"


def test_what_is_asked_for_outranks_the_name() -> None:
    assert direction_of("max", "loss") == "max"
    assert direction_of("min", "accuracy") == "min"


@pytest.mark.parametrize("config_class", [xt.EarlyStoppingConfig, xt.ModelCheckpointConfig])
def test_the_callbacks_know_the_direction_by_name(config_class: Any) -> None:
    assert config_class(monitor="accuracy").direction == "max"
    assert config_class(monitor="train/loss").direction == "min"
    assert config_class(monitor="accuracy", mode="min").direction == "min"
    with pytest.raises(ConfigError, match="mode: found 'best'"):
        xt.check_configs(callback=config_class(monitor="loss", mode="best"))


def test_a_checkpoint_without_a_monitored_metric_asks_for_no_direction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    xt.ModelCheckpointConfig(log_path=str(tmp_path)).create(object())  # type: ignore[arg-type]
    assert caplog.records == []


def test_an_unknown_name_is_told_of_once_and_better_small(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = {"log_path": str(tmp_path)}
    configs: list[Any] = [
        xt.EarlyStoppingConfig(monitor="score"),
        xt.ModelCheckpointConfig(monitor="score", **where),
        xt.EarlyStoppingConfig(monitor="score", mode="max"),
        xt.ModelCheckpointConfig(monitor="loss", **where),
    ]
    with caplog.at_level(logging.WARNING):
        for config in configs:
            config.create(object())
    assert [text.split()[0] for text in caplog.messages] == ["EarlyStopping", "ModelCheckpoint"]
    assert "'score'" in caplog.messages[0] and "mode='max'" in caplog.messages[0]

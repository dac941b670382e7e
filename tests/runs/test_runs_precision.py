"""Do the experiments, shrunk, reach in bfloat16 the loss that they reach in float32?"""

from pathlib import Path
from typing import Any

import byte_lm
import digits
import pytest
import zoo

import xtrainer as xt

LM = [
    "--config.num_train_steps=60",
    "--config.model.model_config.num_layers=1",
    "--config.model.model_config.embed_dim=32",
    "--config.model.model_config.num_heads=2",
    "--config.model.model_config.mlp_dim=32",
    "--config.model.model_config.context_length=16",
    "--config.data.batch_size=16",
    "--config.data.eval_batch_size=16",
    "--config.data.eval_bytes=2048",
]
IMAGES = [
    "--config.num_epochs=10",
    "--config.model.model_config.channels=(16, 32)",
    "--config.model.model_config.dropout_rate=0.0",
    "--config.trainer.check_val_every_n_epoch=5",
]
NEAR = 0.01
"""How far the losses may be apart, as a part of that of float32."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder of sources in which every set has a file."""
    return zoo.write_sources(tmp_path_factory.mktemp("text"), functions=20)


def metrics_of(experiment: Any, dtype: str, folder: Path, *arguments: str) -> dict[str, float]:
    """Returns the metrics of the test set after a run."""
    shared = [
        f"--config.trainer.precision.compute_dtype={dtype}",
        f"--config.trainer.logger.log_path={folder / dtype}",
        "--config.trainer.enable_progress_bar=False",
    ]
    return experiment.run(xt.parse_config(experiment.get_config(), [*arguments, *shared]))["test"]


@pytest.mark.slow
def test_digits_in_bfloat16_reach_the_loss_of_float32(tmp_path: Path) -> None:
    wide, small = (
        metrics_of(digits, dtype, tmp_path, *IMAGES) for dtype in ("float32", "bfloat16")
    )
    assert wide["accuracy"] > 0.9
    assert small["loss"] == pytest.approx(wide["loss"], rel=NEAR)
    assert small["loss"] != wide["loss"]


@pytest.mark.slow
def test_a_language_model_in_bfloat16_reaches_the_loss_of_float32(
    tmp_path: Path, text: Path
) -> None:
    wide, small = (
        metrics_of(
            byte_lm, dtype, tmp_path, *LM,
            f"--config.data.root={text}", f"--config.model.model_config.dtype={dtype}",
        )
        for dtype in ("float32", "bfloat16")
    )  # fmt: skip
    assert wide["loss"] < 2.0  # nats; it begins with log(256) = 5.5
    assert small["loss"] == pytest.approx(wide["loss"], rel=NEAR)
    assert small["loss"] != wide["loss"]

"""The run whose checkpoints are kept here, one for each format that a checkpoint has had.

Synopsis (only where a new format is released; the old ones are never written again):
    JAX_PLATFORMS=cpu python tests/golden/golden_run.py tests/golden/format_N
"""

import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import xtrainer as xt

STEPS, MORE_STEPS = 3, 5
HERE = Path(__file__).parent


class Net(nn.Module):
    """Two layers with BatchNorm and dropout between them."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))[..., 0]


class Regression(xt.TrainerModule):
    """Fits a line; the loss is one value for each example."""

    model_class = Net

    def loss_function(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        found = apply_fn({"params": params}, batch["inputs"], train=train, rngs={"dropout": rng})
        return (found - batch["targets"]) ** 2, ({}, {})


def make_data() -> xt.ArrayLoader:
    """Returns 24 examples in shuffled batches of 8."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(24, 3)).astype(np.float32)
    data = {"inputs": inputs, "targets": inputs.sum(-1)}
    return xt.ArrayLoader(data, batch_size=8, shuffle=True, seed=1)


def make_trainer(folder: Path) -> Regression:
    """Returns a trainer on one device that saves to a run folder."""
    logger = xt.LoggerConfig(log_every_n_steps=1, log_path=str(folder), log_tools=[])
    config = xt.TrainerConfig(
        logger=logger, callbacks=[xt.ModelCheckpointConfig()], enable_progress_bar=False
    )
    optimizer = xt.OptimizerConfig(name="adamw", scheduler=xt.SchedulerConfig(lr=0.05))
    batch = next(iter(make_data()))
    mesh = xt.build_mesh(devices=jax.devices()[:1])
    return Regression(config, xt.ModelConfig(), optimizer, batch, mesh)


def params_of(trainer: Regression) -> dict[str, list[Any]]:
    """Returns the parameters by path, as numbers that JSON keeps exactly."""
    leaves = jax.tree_util.tree_leaves_with_path(trainer.state.params)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tolist() for path, leaf in leaves}


def main(folder: Path) -> None:
    """Writes the checkpoint of step 3, and the parameters of steps 3 and 5 beside it."""
    trainer = make_trainer(folder)
    trainer.train_model(make_data(), num_train_steps=STEPS)
    found = {"saved": params_of(trainer)}
    other = make_trainer(folder / "unused")
    other.trainer_config.callbacks.clear()
    other.callbacks.clear()
    other.train_model(make_data(), num_train_steps=MORE_STEPS)
    found["later"] = params_of(other)
    (folder / "expected.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

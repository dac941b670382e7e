"""A small experiment file, and what the command says of it."""

from pathlib import Path

SMALL = '''\
"""A regression whose data nobody reads."""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

import xtrainer as xt
from xtrainer.config import to_config_dict


class Net(nn.Module):
    width: int = 64

    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(1)(nn.relu(nn.Dense(self.width)(x)))


class Regression(xt.TrainerModule):
    model_class = Net

    def loss_function(self, params, apply_fn, batch, rng, train=True):
        return (apply_fn({"params": params}, batch["inputs"]) ** 2).mean(-1), ({}, {})


def get_config():
    sections = {
        "trainer": xt.TrainerConfig(logger=xt.LoggerConfig(log_path="runs/small")),
        "model": xt.ModelConfig(model_config={"width": 64}),
        "optimizer": xt.OptimizerConfig(),
    }
    config = {name: to_config_dict(section) for name, section in sections.items()}
    return ConfigDict({"num_epochs": 2, "data": {"batch_size": 16}, **config})


def make_trainer(config, mesh=None):
    return Regression(
        xt.Config.from_config_dict(xt.TrainerConfig, config.trainer),
        xt.Config.from_config_dict(xt.ModelConfig, config.model),
        xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer),
        {"inputs": jax.ShapeDtypeStruct((config.data.batch_size, 8), "float32")},
        mesh,
    )
'''


def write_experiment(folder: Path, text: str = SMALL) -> str:
    """Writes an experiment file and returns its path."""
    path = folder / "small_experiment.py"
    path.write_text(text, encoding="utf-8")
    return str(path)

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

TRAINED = SMALL.replace(
    'xt.TrainerConfig(logger=xt.LoggerConfig(log_path="runs/small"))',
    "xt.TrainerConfig(callbacks=[xt.ModelCheckpointConfig(every_n_steps=4, "
    "enable_async_checkpointing=False)], "
    'logger=xt.LoggerConfig(log_path="runs/small", log_every_n_steps=3))',
)
TRAINED += """

def run(config):
    import os
    import numpy as np

    seed = int.from_bytes(os.urandom(3), "big") if config.data.random else 0
    inputs = np.random.default_rng(seed).normal(size=(96, 8)).astype(np.float32)
    loader = xt.ArrayLoader({"inputs": inputs}, config.data.batch_size, shuffle=True, seed=1)
    make_trainer(config).train_model(loader, num_epochs=config.num_epochs, resume=config.resume)
"""
TRAINED = TRAINED.replace(
    '"data": {"batch_size": 16}', '"resume": "auto", "data": {"batch_size": 16, "random": False}'
)
"""An experiment that can be run, and read other data in each process."""

TINY = SMALL.replace(
    'xt.TrainerConfig(logger=xt.LoggerConfig(log_path="runs/small"))',
    "xt.TrainerConfig(callbacks=[xt.ModelCheckpointConfig(monitor='loss', mode='min', "
    "every_n_steps=3, enable_async_checkpointing=False)], "
    'logger=xt.LoggerConfig(log_path="runs/tiny", log_every_n_steps=3, '
    "log_tools=[xt.FileLoggerConfig()]))",
)
TINY += """

def make_loaders(data):
    import numpy as np

    inputs = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
    sets = {"train": inputs[:48], "val": inputs[48:72], "test": inputs[72:]}
    loader = lambda name: xt.ArrayLoader({"inputs": sets[name]}, data.batch_size)
    print("reading the data")
    return {name: loader(name) for name in sets}
"""
TINY = TINY.replace("ConfigDict({", "ConfigDict({'resume': 'auto', ")
"""An experiment without a function of its own that trains: 3 steps an epoch, with three sets."""


def write_experiment(folder: Path, text: str = SMALL) -> str:
    """Writes an experiment file and returns its path."""
    path = folder / "small_experiment.py"
    path.write_text(text, encoding="utf-8")
    return str(path)

"""A language model of code learns to read the manual: adapters are trained, the model is frozen.

Synopsis:
    python experiments/lora.py                                  # trains the model of code first
    python experiments/lora.py --config.base=RUN_FOLDER         # or takes one of byte_lm.py
    python experiments/lora.py --config.base=RUN_FOLDER --config.method=full
"""

import dataclasses
from pathlib import Path
from typing import Any

import byte_lm
import jax
from lm.lora import BASE, LoraTransformer, merge
from lm.manual import load_manual
from lm.text import RandomWindows, SequentialWindows
from ml_collections import ConfigDict, config_dict
from run_record import new_run_folder, say, say_where, show, write_record

import xtrainer as xt
from xtrainer.config import to_config_dict
from xtrainer.errors import ConfigError, did_you_mean
from xtrainer.optim import frozen_patterns
from xtrainer.tree import num_elements

METHODS = ("lora", "full")


def get_config() -> ConfigDict:
    """Returns the settings of a run of about a minute, and of the model it begins with."""
    config: Any = byte_lm.get_config()
    trainer = xt.TrainerConfig(
        logger=xt.LoggerConfig(log_every_n_steps=50, log_path=new_run_folder("lora")),
        callbacks=[
            xt.ModelCheckpointConfig(monitor="loss", mode="min", max_to_keep=1),
            xt.LearningRateMonitorConfig(),
        ],
    )
    optimizer = xt.OptimizerConfig(
        name="adamw",
        scheduler=xt.SchedulerConfig(name="cosine_decay", lr=5e-3, end_lr_factor=0.02),
        beta2=0.95,
        grad_clip_norm=1.0,
        freeze=(f"^{BASE}/",),
    )
    model = {
        "rank": 8,
        "alpha": 16.0,
        "targets": ("qkv$", "out$", "up$", "down$", "head$"),
        "base": config.model.model_config.to_dict(),
    }
    parallel = xt.ParallelConfig(param_rules=byte_lm.TENSOR_RULES)
    sections = {
        "resume": "auto",  # go on where a run in this folder has stopped; "must", "never"
        "base": config_dict.placeholder(str),  # a run of byte_lm.py; None: it is trained first
        "base_steps": 1500,  # of that training
        "method": "lora",  # or "full": no adapters, and all of the model is trained
        "num_train_steps": 1000,
        "trainer": to_config_dict(trainer),
        "model": to_config_dict(
            xt.ModelConfig(model_class="lora_byte_lm", model_config=model, parallel=parallel)
        ),
        "optimizer": to_config_dict(optimizer),
        "data": config.data.to_dict(),
    }
    return byte_lm.tie(ConfigDict(sections), context=("model", "model_config", "base"))


class LoraLM(byte_lm.ByteLM):
    """Next-byte prediction by an adapted model."""

    model_class = LoraTransformer


def make_loaders(data: Any) -> dict[str, Any]:
    """Returns the loaders of the three sets from the config's section ``data``."""
    streams = load_manual()
    limits = (data.eval_batch_size, data.context_length, data.eval_bytes)
    return {
        "train": RandomWindows(streams["train"], data.batch_size, data.context_length, data.seed),
        "val": SequentialWindows(streams["val"], *limits),
        "test": SequentialWindows(streams["test"], *limits),
    }


def make_trainer(config: Any, mesh: Any = None) -> LoraLM:
    """Returns the trainer, with a model as it is initialized; see :func:`load_base`.

    Raises:
        ConfigError: If the config names a method that there is not.
    """
    if config.method not in METHODS:
        raise ConfigError(
            f"method: found {config.method!r}. {did_you_mean(config.method, METHODS)}"
        )
    model = xt.Config.from_config_dict(xt.ModelConfig, config.model)
    optimizer = xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer)
    if config.method == "full":
        model = dataclasses.replace(model, model_config={**model.model_config, "rank": 0})
        optimizer = dataclasses.replace(optimizer, freeze=())
    rows = (config.data.batch_size, config.data.context_length)
    return LoraLM(
        xt.Config.from_config_dict(xt.TrainerConfig, config.trainer),
        model,
        optimizer,
        {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in byte_lm.BATCH.items()},
        mesh,
    )


def load_base(trainer: LoraLM, folder: str | Path) -> None:
    """Puts the best checkpoint of a run of ``byte_lm.py`` in the place of the frozen parameters."""
    frozen = [f"^params/{BASE}/"] if frozen_patterns(trainer.optimizer_config) else []
    found = xt.PretrainedMap(
        rename=[("^params/", f"params/{BASE}/")], skip=[f"^params/(?!{BASE}/)"], freeze=frozen
    )
    trainer.load_pretrained_model(folder, load_best=True, load_optimizer=False, param_map=found)


def base_config(config: Any, folder: str) -> Any:
    """Returns the config of a run of ``byte_lm.py`` that trains the model to begin with."""
    own: Any = byte_lm.get_config()
    own.trainer.logger.log_path, own.num_train_steps = folder, config.base_steps
    own.trainer.enable_progress_bar = config.trainer.enable_progress_bar
    for name, value in config.model.model_config.base.items():
        own.model.model_config[name] = value
    for name in ("root", "batch_size", "eval_batch_size", "eval_bytes"):
        own.data[name] = config.data[name]
    return own.lock()


def train_base(config: Any) -> str:
    """Trains the model of code beside the run folder, unless that is done; returns its folder."""
    folder = f"{config.trainer.logger.log_path}-{BASE}"
    byte_lm.run(base_config(config, folder))
    return folder


def merged(trainer: LoraLM) -> byte_lm.ByteLM:
    """Returns a trainer of the plain model, with the adapters added to its weights."""
    plain = byte_lm.ByteLM(
        xt.TrainerConfig(logger=None, enable_progress_bar=False),
        xt.ModelConfig(model_class="byte_lm", model_config=dict(trainer.model.base)),
        xt.OptimizerConfig(),
        trainer.exmp_batch,
        trainer.mesh,
    )
    plain.restore_model({"params": merge(trainer.state.params, trainer.model.scale)})
    return plain


def run(config: Any) -> dict[str, dict[str, float]]:
    """Trains and evaluates, before and after merging too; returns the metrics."""
    base = config.base or train_base(config)
    loaders = make_loaders(config.data)
    trainer = make_trainer(config)
    write_record(trainer.log_path, "lora", config)
    load_base(trainer, base)
    before = trainer.evaluate_with(trainer.loss_function, loaders["test"], "test of the base")
    results = trainer.train_model(
        loaders["train"],
        loaders["val"],
        test_loader=loaders["test"],
        num_train_steps=config.num_train_steps,
        resume=config.get("resume", "auto"),
    )
    if "test" not in results:  # a step was not finite
        return results
    say(f"trained parameters: {trained_parameters(trainer)} of {trainer.get_num_params()}")
    show("base test", before)
    show("test", results["test"])
    best = LoraLM.load_from_checkpoint(str(trainer.log_path))
    show("merged test", merged(best).test_model(loaders["test"]))
    say_where(trainer.log_path)
    return results


def trained_parameters(trainer: LoraLM) -> int:
    """Returns how many numbers are trained."""
    params = dict(trainer.state.params)
    if frozen_patterns(trainer.optimizer_config):
        params.pop(BASE)
    return num_elements(params)


if __name__ == "__main__":
    xt.initialize()
    run(xt.parse_config(get_config()))

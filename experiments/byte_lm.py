"""The main job: a small transformer learns to predict the bytes of Python source code.

Synopsis:
    python experiments/byte_lm.py
    python experiments/byte_lm.py --config.num_train_steps=40 --config.optimizer.scheduler.lr=1e-3
"""

import functools
import math
import time
from typing import Any

import jax
import optax
from lm.model import Transformer
from lm.text import RandomWindows, SequentialWindows, load_splits
from lm.trigram import Trigram
from ml_collections import ConfigDict, config_dict
from run_record import new_run_folder, say, say_where, show, write_record

import xtrainer as xt
from xtrainer.config import to_config_dict

TENSOR_RULES = (
    ("Embed_0/embedding", ("tp", "fsdp")),
    (r"/(qkv|up)/kernel$", ("fsdp", "tp")),
    (r"/(out|down)/kernel$", ("tp", "fsdp")),
    ("head/kernel", ("fsdp", "tp")),
)
"""What ``model.parallel.model_axis_size`` divides: columns of the matrices that lead into attention
and network, rows of those that lead out; ``fsdp`` divides the other dimension."""

BATCH = {"inputs": "uint8", "targets": "uint8", "mask": "float32"}
"""The arrays of a batch, and their dtypes."""


def get_config() -> ConfigDict:
    """Returns the settings of a run of about two minutes on two CPU cores."""
    trainer = xt.TrainerConfig(
        log_intermediates=True,
        logger=xt.LoggerConfig(log_every_n_steps=50, log_path=new_run_folder("byte_lm")),
        callbacks=[
            xt.ModelCheckpointConfig(monitor="loss", mode="min", max_to_keep=1),
            xt.LearningRateMonitorConfig(),
        ],
    )
    model = {
        "context_length": 64,
        "num_layers": 2,
        "embed_dim": 128,
        "num_heads": 4,
        "mlp_dim": 512,
        "shift_width": 2,
        "dropout_rate": 0.02,
        "dtype": "float32",
    }
    optimizer = xt.OptimizerConfig(
        name="adamw",
        scheduler=xt.SchedulerConfig(name="cosine_decay", lr=6e-3, end_lr_factor=0.02),
        beta2=0.95,
        weight_decay=0.01,
        weight_decay_exclude=("scale",),
        grad_clip_norm=1.0,
    )
    data = {
        "root": config_dict.placeholder(str),  # None: the running Python's standard library
        "batch_size": 8,
        "eval_batch_size": 32,
        "eval_bytes": 131_072,
        "seed": 0,
    }
    sections = {
        "resume": "auto",  # go on where a run in this folder has stopped; "must", "never"
        "num_train_steps": 3000,
        "trainer": to_config_dict(trainer),
        "model": to_config_dict(
            xt.ModelConfig(
                model_class="byte_lm",
                model_config=model,
                parallel=xt.ParallelConfig(param_rules=TENSOR_RULES),
            )
        ),
        "optimizer": to_config_dict(optimizer),
        "data": data,
    }
    return tie(ConfigDict(sections))


def tie(config: Any, context: tuple[str, ...] = ("model", "model_config")) -> ConfigDict:
    """Returns the config with what follows from other settings, also when those are overridden.

    Args:
        context: The section with the transformer's ``context_length``.
    """
    steps = config.get_oneway_ref("num_train_steps")
    config.trainer.check_val_every_n_steps = (steps + 1) // 2
    config.optimizer.scheduler.decay_steps = steps
    config.optimizer.scheduler.warmup_steps = steps // 10
    section = functools.reduce(getattr, context, config)
    config.data.context_length = section.get_oneway_ref("context_length")
    return config


class ByteLM(xt.TrainerModule):
    """Next-byte prediction; the loss is in nats, ``bits_per_byte`` is added to every set."""

    model_class = Transformer

    def loss_function(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        """Returns the loss and accuracy of each byte, weighted by the mask."""
        logits = apply_fn({"params": params}, batch["inputs"], train=train, rngs={"dropout": rng})
        targets = batch["targets"].astype("int32")
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        correct = logits.argmax(-1) == targets
        metrics = {"accuracy": {"value": correct, "count": batch["mask"]}}
        return {"value": loss, "count": batch["mask"]}, (metrics, {})

    def get_metric_postprocess_fn(self) -> Any:
        """Returns a function that adds ``bits_per_byte`` beside each mean of the loss."""
        return add_bits_per_byte


def add_bits_per_byte(metrics: dict[str, float]) -> dict[str, float]:
    """Returns the metrics with ``bits_per_byte`` for each mean loss.

    Example:
        >>> round(add_bits_per_byte({"loss": math.log(256)})["bits_per_byte"], 6)
        8.0
    """
    names = {name: name.replace("loss", "bits_per_byte") for name in ("loss", "loss_mean")}
    found = {new: metrics[old] / math.log(2) for old, new in names.items() if old in metrics}
    return {**metrics, **found}


def make_loaders(data: Any) -> dict[str, Any]:
    """Returns the loaders of the three sets from the config's section ``data``."""
    streams = load_splits(data.root)
    limits = (data.eval_batch_size, data.context_length, data.eval_bytes)
    return {
        "train": RandomWindows(streams["train"], data.batch_size, data.context_length, data.seed),
        "val": SequentialWindows(streams["val"], *limits),
        "test": SequentialWindows(streams["test"], *limits),
    }


def make_trainer(config: Any, mesh: Any = None) -> ByteLM:
    """Returns the trainer; no text is read for it."""
    rows = (config.data.batch_size, config.data.context_length)
    return ByteLM(
        xt.Config.from_config_dict(xt.TrainerConfig, config.trainer),
        xt.Config.from_config_dict(xt.ModelConfig, config.model),
        xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer),
        {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in BATCH.items()},
        mesh,
    )


def run(config: Any) -> dict[str, dict[str, float]]:
    """Trains, evaluates, compares with a trigram fitted to the same bytes; returns the metrics."""
    loaders = make_loaders(config.data)
    trainer = make_trainer(config)
    write_record(trainer.log_path, "byte_lm", config)
    start = time.perf_counter()
    results = trainer.train_model(
        loaders["train"],
        loaders["val"],
        test_loader=loaders["test"],
        num_train_steps=config.num_train_steps,
        resume=config.get("resume", "auto"),
    )
    seconds = time.perf_counter() - start
    if "test" not in results:  # a step was not finite
        return results
    trigram = Trigram(loaders["train"].stream)
    val_rows = [row for name, row in results.items() if name.startswith("val_")]
    for name, metrics in (("val", val_rows[-1]), ("test", results["test"])):
        bits = trigram.bits_per_byte(loaders[name].stream, loaders[name].target_positions())
        show(name, metrics)
        say(f"{name} trigram bits_per_byte: {bits!r}")
    tokens = config.num_train_steps * config.data.batch_size * config.data.context_length
    say(f"tokens per second, compilation and evaluation included: {tokens / seconds:.0f}")
    say_where(trainer.log_path)
    return results


if __name__ == "__main__":
    xt.initialize()
    run(xt.parse_config(get_config()))

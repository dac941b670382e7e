"""Real images in under a minute: a small CNN with BatchNorm reads handwritten digits.

Synopsis:
    python experiments/digits.py
    python experiments/digits.py --config.num_epochs=2 --config.trainer.logger.log_path=runs/b
    python experiments/digits.py --config.data.loader=grain --config.data.num_workers=2
"""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict
from run_record import new_run_folder, say_where, show, write_record
from vision.data import TRAIN_SIZE, Examples, ImageLoader, load_digits
from vision.model import DigitsCNN

import xtrainer as xt
from xtrainer.config import to_config_dict
from xtrainer.data import GrainLoader
from xtrainer.errors import ConfigError, did_you_mean


def get_config() -> ConfigDict:
    """Returns the settings of a run that ends above 98 % test accuracy."""
    trainer = xt.TrainerConfig(
        check_val_every_n_epoch=5,
        logger=xt.LoggerConfig(log_every_n_steps=20, log_path=new_run_folder("digits")),
        callbacks=[
            xt.ModelCheckpointConfig(monitor="accuracy", mode="max", max_to_keep=1),
            xt.LearningRateMonitorConfig(),
        ],
    )
    model = {"num_classes": 10, "channels": (32, 64, 128), "dropout_rate": 0.5}
    optimizer = xt.OptimizerConfig(
        name="adamw",
        scheduler=xt.SchedulerConfig(name="cosine_decay", lr=3e-3, end_lr_factor=0.05),
        weight_decay=0.01,
        weight_decay_exclude=("scale", "bias"),
    )
    sections = {
        "resume": "auto",  # go on where a run in this folder has stopped; "must", "never"
        "num_epochs": 20,
        "trainer": to_config_dict(trainer),
        "model": to_config_dict(xt.ModelConfig(model_class="digits_cnn", model_config=model)),
        "optimizer": to_config_dict(optimizer),
        "data": {
            "loader": "arrays",  # or "grain", which needs the extra of that name
            "batch_size": 64,
            "eval_batch_size": 128,
            "seed": 0,
            "num_workers": 0,  # with "grain": processes that read the training set
        },
    }
    return tie(ConfigDict(sections))


def tie(config: Any) -> ConfigDict:
    """Returns the config with what follows from other settings, also when those are overridden."""
    steps = config.get_oneway_ref("num_epochs") * TRAIN_SIZE // config.data.get_ref("batch_size")
    config.optimizer.scheduler.decay_steps = steps
    config.optimizer.scheduler.warmup_steps = steps // 10
    return config


class DigitClassifier(xt.TrainerModule):
    """Classification of images; the framework carries the batch statistics."""

    model_class = DigitsCNN

    def loss_function(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        """Returns the loss and accuracy of each image."""
        logits = apply_fn({"params": params}, batch["inputs"], train=train, rngs={"dropout": rng})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return loss, ({"accuracy": logits.argmax(-1) == batch["targets"]}, {})


def make_loaders(data: Any) -> dict[str, Any]:
    """Returns the loaders of the three sets from the config's section ``data``.

    Raises:
        ConfigError: If the config names a loader that there is not.
    """
    sets = load_digits()
    loader = data.get("loader", "arrays")  # records of earlier runs have none
    if loader == "arrays":
        train: Any = ImageLoader(sets["train"], data.batch_size, shuffle_seed=data.seed)
        others: Any = ImageLoader
    elif loader == "grain":
        sets = {name: Examples(examples) for name, examples in sets.items()}
        train = GrainLoader(
            sets["train"],
            data.batch_size,
            shuffle=True,
            seed=data.seed,
            drop_remainder=True,
            num_workers=data.num_workers,
        )
        others = GrainLoader
    else:
        hint = did_you_mean(loader, ("arrays", "grain"))
        raise ConfigError(f"data.loader: found {loader!r}. {hint}")
    held_out = {name: others(sets[name], data.eval_batch_size) for name in ("val", "test")}
    return {"train": train, **held_out}


def make_trainer(config: Any, mesh: Any = None) -> DigitClassifier:
    """Returns the trainer; no image is read for it."""
    shapes = {"inputs": ((8, 8, 1), "float32"), "targets": ((), "int32")}
    rows = config.data.batch_size
    return DigitClassifier(
        xt.Config.from_config_dict(xt.TrainerConfig, config.trainer),
        xt.Config.from_config_dict(xt.ModelConfig, config.model),
        xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer),
        {n: jax.ShapeDtypeStruct((rows, *shape), dtype) for n, (shape, dtype) in shapes.items()},
        mesh,
    )


def run(config: Any) -> dict[str, dict[str, float]]:
    """Trains and evaluates; returns the metrics."""
    loaders = make_loaders(config.data)
    trainer = make_trainer(config)
    write_record(trainer.log_path, "digits", config)
    results = trainer.train_model(
        loaders["train"],
        loaders["val"],
        test_loader=loaders["test"],
        num_epochs=config.num_epochs,
        resume=config.get("resume", "auto"),
    )
    if "test" in results:  # not after a step that was not finite
        show("test", results["test"])
    say_where(trainer.log_path)
    return results


if __name__ == "__main__":
    xt.initialize()
    run(xt.parse_config(get_config()))

"""Two networks with an optimizer each, in turns: a GAN imitates a ring of Gaussians, or digits.

Synopsis:
    python experiments/gan.py
    python experiments/gan.py --config.model.model_config.target=digits
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from generative.data import load_target, make_sets
from generative.model import Gan
from ml_collections import ConfigDict
from run_record import new_run_folder, say_where, show, write_record

import xtrainer as xt
from xtrainer.config import to_config_dict

GROUPS = (
    xt.ParamGroupConfig(name="discriminator", params=("^discriminator/",)),
    xt.ParamGroupConfig(name="generator", params=("^generator/",), lr_factor=0.5),
)
"""Each has an optimizer of its own; the discriminator's turn comes first."""


def get_config() -> ConfigDict:
    """Returns the settings of a run that finds all modes of the ring."""
    trainer = xt.TrainerConfig(
        steps_per_dispatch=20,
        nonfinite_policy="skip",
        logger=xt.LoggerConfig(log_every_n_steps=100, log_path=new_run_folder("gan")),
        callbacks=[
            xt.ModelCheckpointConfig(monitor="quality", mode="max", max_to_keep=1),
            xt.LearningRateMonitorConfig(),
        ],
    )
    optimizer = xt.OptimizerConfig(
        name="adam",
        scheduler=xt.SchedulerConfig(name="cosine_decay", lr=2e-3, end_lr_factor=0.05),
        beta1=0.5,
        beta2=0.99,
        groups=GROUPS,
        in_turns=True,
    )
    model = {"target": "ring", "latent_size": 16, "width": 128, "depth": 2, "slope_penalty": 0.05}
    sections = {
        "resume": "auto",  # go on where a run in this folder has stopped; "must", "never"
        "num_train_steps": 5000,
        "trainer": to_config_dict(trainer),
        "model": to_config_dict(xt.ModelConfig(model_class="gan", model_config=model)),
        "optimizer": to_config_dict(optimizer),
        "data": {"batch_size": 256, "eval_batch_size": 512, "seed": 0},
    }
    return tie(ConfigDict(sections))


def tie(config: Any) -> ConfigDict:
    """Returns the config with what follows from other settings, also when those are overridden."""
    steps = config.get_oneway_ref("num_train_steps")
    config.trainer.check_val_every_n_steps = (steps + 4) // 5
    config.optimizer.scheduler.decay_steps = steps
    for name in ("target", "latent_size"):
        config.data[name] = config.model.model_config.get_oneway_ref(name)
    return config


class GanTrainer(xt.TrainerModule):
    """Alternating training with a penalty on the discriminator's slope at real points (R1)."""

    model_class = Gan

    @staticmethod
    def batch_to_input(batch: Any) -> Any:
        """Returns the arguments of the model's initialization."""
        return batch["inputs"], batch["latents"]

    def discriminator_loss(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        """Returns how badly each real and each generated point is told apart, and the penalty."""
        judge = lambda points: apply_fn({"params": params}, points, method="discriminate")  # noqa: E731
        made = self.made(params, apply_fn, batch, rng, train)
        real, fake = judge(batch["inputs"]), judge(made)
        slopes = jax.grad(lambda points: judge(points).sum())(batch["inputs"])
        loss = jax.nn.softplus(-real) + jax.nn.softplus(fake)
        return loss + self.model.slope_penalty * jnp.square(slopes).sum(-1), (
            {"real_seen": real > 0},
            {},
        )

    def generator_loss(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        """Returns how unreal each generated point looks to the discriminator."""
        made = self.made(params, apply_fn, batch, rng, train)
        fake = apply_fn({"params": params}, made, method="discriminate")
        return jax.nn.softplus(-fake), ({"fake_passes": fake > 0}, {})

    def made(self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool) -> jax.Array:
        """Returns generated points: new ones while training, else those of the batch's latents."""
        latents = batch["latents"]
        latents = jax.random.normal(rng, latents.shape) if train else latents
        return apply_fn({"params": params}, latents, method="generate")

    def loss_function(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        """Returns both losses together, and in evaluations how good the generated points are."""
        parts, metrics = (params, apply_fn, batch, rng, train), {}
        for name, loss in self.losses().items():
            metrics[f"{name}_loss"], (more, _) = loss(*parts)
            metrics |= more
        both = metrics["discriminator_loss"] + metrics["generator_loss"]
        if not train:
            metrics |= self.judged(self.made(*parts))
        return both, (metrics, {})

    def losses(self) -> dict[str, Callable[..., Any]]:
        """Returns the losses in the order of their turns."""
        return {"discriminator": self.discriminator_loss, "generator": self.generator_loss}

    def judged(self, made: jax.Array) -> dict[str, jax.Array]:
        """Returns for each generated point how far it is from a real one, and if near, which."""
        target = load_target(self.model.target)
        squares = jnp.square(made[:, None] - target.references[None]).sum(-1)
        distance, nearest = jnp.sqrt(squares.min(-1)), squares.argmin(-1)
        near, modes = distance < target.radius, jnp.asarray(target.labels)[nearest]
        shares = {f"mode_{i}": near & (modes == i) for i in range(target.modes)}
        return {"distance": distance, "near": near, **shares}

    def create_training_step_function(self, settings: Any = None) -> Any:
        """Returns the step of two turns; see :func:`xtrainer.make_turns_step`."""
        config: Any = self.optimizer_config
        parts = (self.model.apply, self.optimizer, settings or self.step_settings())
        return xt.make_turns_step(self.losses(), config.groups, *parts)

    def get_metric_postprocess_fn(self) -> Any:
        """Returns a function that says how many modes are covered."""
        return add_coverage

    def predict_function(self, params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        """Returns the points generated from the latents of a batch."""
        return apply_fn({"params": params}, batch["latents"], method="generate")


def add_coverage(metrics: dict[str, float]) -> dict[str, float]:
    """Returns the metrics with the modes that are covered in place of the share of each.

    A mode is covered if it has a quarter of its share at least. ``quality`` is 1 if all points are
    near a real one and all modes have their share, and 1 / modes if all points are of one.

    Example:
        >>> add_coverage({"mode_0": 0.5, "mode_1": 0.1, "loss": 2.0})
        {'loss': 2.0, 'modes_covered': 1.0, 'quality': 0.6}
    """
    shares = [value for name, value in metrics.items() if name.startswith("mode_")]
    kept = {name: value for name, value in metrics.items() if not name.startswith("mode_")}
    if not shares:
        return kept
    fair = 1 / len(shares)
    covered = sum(share >= fair / 4 for share in shares)
    return {
        **kept,
        "modes_covered": float(covered),
        "quality": sum(min(share, fair) for share in shares),
    }


def make_loaders(data: Any) -> dict[str, Any]:
    """Returns the loaders of the three sets from the config's section ``data``."""
    sets = make_sets(data.target, data.latent_size)
    train = xt.ArrayLoader(
        sets["train"], data.batch_size, shuffle=True, seed=data.seed, drop_last=True, endless=True
    )
    held_out = {name: xt.ArrayLoader(sets[name], data.eval_batch_size) for name in ("val", "test")}
    return {"train": train, **held_out}


def make_trainer(config: Any, mesh: Any = None) -> GanTrainer:
    """Returns the trainer."""
    features = load_target(config.data.target).features
    sizes = {"inputs": features, "latents": config.data.latent_size}
    rows = config.data.batch_size
    return GanTrainer(
        xt.Config.from_config_dict(xt.TrainerConfig, config.trainer),
        xt.Config.from_config_dict(xt.ModelConfig, config.model),
        xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer),
        {name: jax.ShapeDtypeStruct((rows, size), "float32") for name, size in sizes.items()},
        mesh,
    )


def run(config: Any) -> dict[str, dict[str, float]]:
    """Trains and evaluates; returns the metrics."""
    loaders = make_loaders(config.data)
    trainer = make_trainer(config)
    write_record(trainer.log_path, "gan", config)
    results = trainer.train_model(
        loaders["train"],
        loaders["val"],
        test_loader=loaders["test"],
        num_train_steps=config.num_train_steps,
        resume=config.get("resume", "auto"),
    )
    if "test" in results:  # not after steps that were not finite
        show("test", results["test"])
    say_where(trainer.log_path)
    return results


if __name__ == "__main__":
    xt.initialize()
    run(xt.parse_config(get_config()))

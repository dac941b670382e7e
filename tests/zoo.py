"""Small models, trainers and data that several tests share."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import xtrainer as xt


class MLP(nn.Module):
    """Two layers; with BatchNorm, dropout and one sown scalar on request."""

    width: int = 8
    classes: int = 3
    batch_norm: bool = False
    dropout: float = 0.0
    sow: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width)(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.relu(x)
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.sow:
            self.sow("intermediates", "activation", x.mean())
        return nn.Dense(self.classes)(x)


class Classifier(xt.TrainerModule):
    """The class of the README."""

    model_class = MLP

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch.inputs, train=train, rngs={"dropout": rng})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return loss, ({"accuracy": logits.argmax(-1) == batch.targets}, {})


def classification_data(rows: int = 64, seed: int = 0) -> xt.Batch:
    """Returns a batch of ``rows`` rows with four features and three classes."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 4)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int32) + (inputs[:, 1] > 0).astype(np.int32)
    return xt.Batch(inputs=inputs, targets=targets)


def loader(rows: int = 64, batch_size: int = 16, **kwargs: Any) -> xt.ArrayLoader:
    """Returns a loader of ``classification_data``."""
    return xt.ArrayLoader(classification_data(rows), batch_size=batch_size, **kwargs)


def make_trainer(
    trainer_class: type[xt.TrainerModule] = Classifier,
    model: dict[str, Any] | None = None,
    optimizer: Any = None,
    batch: Any = None,
    mesh: Any = None,
    parallel: xt.ParallelConfig | None = None,
    **config: Any,
) -> Any:
    """Returns a trainer of the MLP; without logger and bars unless ``config`` asks for them."""
    config = {"logger": None, "enable_progress_bar": False, **config}
    return trainer_class(
        xt.TrainerConfig(**config),
        xt.ModelConfig(model_config=model or {}, parallel=parallel or xt.ParallelConfig()),
        optimizer or xt.OptimizerConfig(name="sgd", scheduler=xt.SchedulerConfig(lr=0.1)),
        classification_data(16) if batch is None else batch,
        mesh,
    )


def host(tree: Any) -> Any:
    """Returns the tree as NumPy arrays; keys as their data."""

    def fetch(x: Any) -> np.ndarray:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.array(jax.device_get(x))

    return jax.tree.map(fetch, tree)

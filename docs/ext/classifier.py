import flax.linen as nn
import jax
import numpy as np
import optax

import xtrainer as xt


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(2)(nn.Dropout(0.1, deterministic=not train)(x))


class Classifier(xt.TrainerModule):
    model_class = MLP

    def loss_function(self, params, apply_fn, batch, rng, train=True):
        logits = apply_fn({"params": params}, batch["inputs"], train=train, rngs={"dropout": rng})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return loss, ({"accuracy": logits.argmax(-1) == batch["targets"]}, {})


x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
data = {"inputs": x, "targets": (x[:, 0] * x[:, 1] > 0).astype(np.int32)}
train_loader = xt.ArrayLoader(data, batch_size=40, shuffle=True)  # 25 steps an epoch
val_loader = xt.ArrayLoader(data, batch_size=64)
batch = jax.tree.map(lambda array: array[:40], data)  # only its shapes are used
optimizer = xt.OptimizerConfig(name="adamw", scheduler=xt.SchedulerConfig(lr=1e-2))


def make_trainer(**settings):
    return Classifier(xt.TrainerConfig(**settings), xt.ModelConfig(), optimizer, batch)

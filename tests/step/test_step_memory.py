"""What does a step keep in memory? Read from the compiled program, whatever the backend."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import byte_lm
import flax.linen as nn
import jax
import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.tree import num_bytes

ROWS = 32
FSDP = xt.ParallelConfig(data_axis_size=1, fsdp_axis_size=8, fsdp_min_weight_size=64)


class Deep(nn.Module):
    """Layers whose parameters are much larger than what passes through them."""

    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for _ in range(2):
            x = nn.Dense(256)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        return nn.Dense(3)(x)


class Classifier(zoo.Classifier):
    model_class = Deep


def bytes_of_text(rows: int, length: int) -> dict[str, np.ndarray]:
    dtypes = {"inputs": np.uint8, "targets": np.uint8, "mask": np.float32}
    return {name: np.ones((rows, length), dtype) for name, dtype in dtypes.items()}


def language_model(batch: Any, dim: int, **config: Any) -> Any:
    length = batch["inputs"].shape[1]
    model = {"context_length": length, "num_layers": 1, "embed_dim": dim, "num_heads": 4}
    model["mlp_dim"] = 4 * dim
    optimizer = zoo.optimizer("adamw", 1e-3)
    return zoo.make_trainer(byte_lm.ByteLM, model, optimizer, batch, zoo.devices(1), **config)


def make(kind: str, batch: Any, **config: Any) -> Any:
    """Returns a trainer; all but a wide language model are small beside their batches."""
    if kind.endswith("transformer"):
        return language_model(batch, 32 if kind == "small transformer" else 256, **config)
    parallel = FSDP if kind == "sharded" else xt.ParallelConfig()
    mesh = xt.build_mesh(FSDP) if kind == "sharded" else zoo.devices(1)
    model, adam = {"batch_norm": kind == "batch norm"}, zoo.optimizer("adam")
    return zoo.make_trainer(Classifier, model, adam, batch, mesh, parallel, **config)


@functools.cache
def compiled(kind: str, pieces: int = 1, **config: Any) -> tuple[Any, Any]:
    """Returns a trainer and its compiled training step."""
    batch: Any = zoo.classification_data(ROWS)
    if kind.endswith("transformer"):
        batch = bytes_of_text(ROWS, 64 if kind == "small transformer" else 4)
    trainer = make(kind, batch, gradient_accumulate_steps=pieces, **config)
    return trainer, trainer.compiled_train_step.lower(trainer.state, batch).compile()


def peak(kind: str, pieces: int) -> int:
    """Returns the bytes of arguments and temporaries on one device."""
    memory = compiled(kind, pieces)[1].memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def gradient_bytes(trainer: Any) -> int:
    """Returns the bytes of a float32 gradient on one device."""
    params = jax.tree.leaves(trainer.state.params)
    return sum(4 * leaf.addressable_shards[0].data.size for leaf in params)


@pytest.mark.parametrize(
    ("kind", "pieces", "trees"),
    [
        ("plain", 2, 1.0),
        ("plain", 4, 1.0),
        ("plain", 8, 1.0),
        ("batch norm", 4, 1.0),
        # Hardly any activations, and a whole batch whose step copies no parameter any more: XLA
        # still copies two matrices for the loop.
        ("wide transformer", 4, 1.35),
    ],
)
def test_accumulation_costs_at_most_one_gradient_more(kind: str, pieces: int, trees: float) -> None:
    allowed = trees * gradient_bytes(compiled(kind)[0])
    more = peak(kind, pieces) - peak(kind, 1)
    print(f"{kind}, {pieces} micro-batches: {more / allowed:+.2f} gradients more")
    assert more <= allowed


def test_accumulation_of_sharded_parameters_costs_at_most_one_shard_of_a_gradient_more() -> None:
    allowed = gradient_bytes(compiled("sharded")[0])
    more = peak("sharded", 4) - peak("sharded", 1)
    print(f"{more / allowed:+.2f} gradients more")
    assert more <= allowed + 4096  # metrics and slices of the batch


def test_accumulation_of_large_activations_costs_a_part() -> None:
    sizes = [peak("small transformer", pieces) for pieces in (1, 8)]
    print(f"{sizes[1] / sizes[0]:.2f} of the whole batch at once")
    assert sizes[1] < 0.25 * sizes[0]


def aliased(step: Any) -> set[int]:
    """Returns the numbers of the inputs whose buffers the results take over."""
    header = step.as_text().partition("\n")[0]
    return {int(number) for number in re.findall(r"\}: \((\d+), \{", header)}


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("kind", ["plain", "batch norm", "wide transformer", "sharded"])
def test_nothing_of_the_state_is_copied(kind: str, pieces: int) -> None:
    trainer, step = compiled(kind, pieces)
    assert set(range(len(jax.tree.leaves(trainer.state)))) <= aliased(step)
    held = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(trainer.state)]
    assert step.memory_analysis().alias_size_in_bytes >= num_bytes(held)


def test_a_state_that_is_kept_is_copied() -> None:
    trainer, step = compiled("plain", donate_train_state=False)
    assert not set(range(len(jax.tree.leaves(trainer.state)))) & aliased(step)


def test_an_evaluation_of_many_batches_holds_a_few_of_them() -> None:
    rows = 4096  # of batches too large to go into the step as host arrays
    trainer = make("plain", zoo.classification_data(rows))
    sizes, inputs = [], np.asarray(zoo.classification_data(rows).inputs)

    def batches() -> Iterator[xt.Batch]:
        for seed in range(64):
            sizes.append(sum(x.nbytes for x in jax.live_arrays() if x.shape == inputs.shape))
            yield zoo.classification_data(rows, seed)

    trainer.eval_model(batches())
    assert 0 < max(sizes) < 12 * inputs.nbytes

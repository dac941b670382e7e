"""Two experiments shrunk to seconds, the meshes they run on, and how two runs are compared."""

from typing import Any

import byte_lm
import digits
import jax
import jax.numpy as jnp
import numpy as np
import probes
import zoo

import xtrainer as xt
from xtrainer.tree import num_bytes

Batch = dict[str, np.ndarray]

ROWS = 32
"""Rows of a batch: with four micro-batches every one of eight devices still has one."""
EXAMPLES = 160
"""Examples of a pass: five batches, so that 50 steps are ten passes, each in its own order."""

MESHES: dict[str, dict[str, int]] = {
    "8dp": {"data_axis_size": 8},
    "4dp_2fsdp": {"data_axis_size": 4, "fsdp_axis_size": 2},
    "8fsdp": {"data_axis_size": 1, "fsdp_axis_size": 8},
    "2dp_2fsdp_2tp": {"data_axis_size": 2, "fsdp_axis_size": 2, "model_axis_size": 2},
}
"""Axis sizes of the meshes of eight devices."""

CNN_RULES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("conv_0/kernel", (None, None, None, "tp")),
    ("conv_*/kernel", (None, None, "fsdp", "tp")),
    ("head/kernel", ("fsdp", "tp")),
)
"""Tensor parallelism of the digits CNN: its channels."""

LM_MODEL = {
    "context_length": 16,
    "num_layers": 1,
    "embed_dim": 32,
    "num_heads": 4,
    "mlp_dim": 64,
    "shift_width": 2,
    "dropout_rate": 0.1,
}
CNN_MODEL = {"channels": (8, 16), "dropout_rate": 0.25}


def order_metrics(batch: Any) -> dict[str, Any]:
    """Returns two metrics that tell which examples a step took; sums of whole numbers are exact."""
    ids = batch["ids"]
    ones = jnp.ones_like(ids)
    return {
        name: {"value": value, "count": ones, "log_modes": ["sum"]}
        for name, value in (("ids", ids), ("id_squares", jnp.square(ids)))
    }


class MaskedLM(byte_lm.ByteLM):
    """The byte LM; it also logs which examples a step took."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, (metrics, rest) = super().loss_function(params, apply_fn, batch, rng, train)
        return loss, (metrics | order_metrics(batch), rest)


class MaskedDigits(digits.DigitClassifier):
    """The digits CNN with a weight of 0 or 1 for each image; it also logs what a step took."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, (metrics, rest) = super().loss_function(params, apply_fn, batch, rng, train)
        weighted = {"value": loss, "count": batch["mask"]}
        return weighted, (metrics | order_metrics(batch), rest)


def lm_examples(rows: int = EXAMPLES) -> Batch:
    """Returns windows of made-up text with random masks; every fifth row has no valid token."""
    rng = np.random.default_rng(7)
    context = LM_MODEL["context_length"]
    # A byte is one of four that may follow the one before: something to learn in 50 steps.
    follows = rng.integers(0, 256, (256, 4))
    text = np.zeros((rows, context + 1), np.int64)
    text[:, 0] = rng.integers(0, 256, rows)
    for place in range(context):
        text[:, place + 1] = follows[text[:, place], rng.integers(0, 4, rows)]
    mask = (rng.random((rows, context)) < rng.uniform(0.1, 1, (rows, 1))).astype(np.float32)
    mask[::5] = 0.0
    text = text.astype(np.uint8)
    ids = np.arange(rows, dtype=np.float32)
    return {"inputs": text[:, :-1], "targets": text[:, 1:], "mask": mask, "ids": ids}


def cnn_examples(rows: int = EXAMPLES) -> Batch:
    """Returns digits, a third of which have no weight."""
    data = digits.load_digits()["train"]
    mask = (np.arange(rows) % 3 > 0).astype(np.float32)
    ids = np.arange(rows, dtype=np.float32)
    return {**{name: array[:rows] for name, array in data.items()}, "mask": mask, "ids": ids}


KINDS: dict[str, tuple[type[xt.TrainerModule], dict[str, Any], Any, Any]] = {
    "lm": (MaskedLM, LM_MODEL, byte_lm.TENSOR_RULES, lm_examples),
    "cnn": (MaskedDigits, CNN_MODEL, CNN_RULES, cnn_examples),
}
"""Trainer class, model, rules of tensor parallelism, examples."""

SGD_RATE, SGD_MOMENTUM = 0.05, 0.9
OPTIMIZERS = {
    "sgd": zoo.optimizer("sgd", SGD_RATE, momentum=SGD_MOMENTUM),
    "adam": zoo.optimizer("adam", 3e-3),
}


def parallel_config(mesh: str, rules: Any) -> xt.ParallelConfig:
    """Returns the layout of a mesh by its name; the smallest parameter is sharded as well."""
    sizes = MESHES[mesh]
    rules = rules if "model_axis_size" in sizes else ()
    return xt.ParallelConfig(**sizes, fsdp_min_weight_size=1, param_rules=rules)


def build_model(kind: str) -> Any:
    """Returns the model that the trainer of a kind trains."""
    trainer_class, arguments, _, _ = KINDS[kind]
    return trainer_class.model_class(**arguments)


def make_trainer(
    kind: str,
    mesh: str,
    accumulate: int = 1,
    optimizer: str = "sgd",
    rows: int = ROWS,
    **config: Any,
) -> Any:
    """Returns a trainer of ``"lm"`` or ``"cnn"`` on a mesh of ``MESHES``, or on ``"1"`` device."""
    trainer_class, model, rules, examples = KINDS[kind]
    trainer = zoo.make_trainer(
        trainer_class,
        model,
        OPTIMIZERS[optimizer],
        batch={name: array[:rows] for name, array in examples().items()},
        mesh=zoo.devices(1) if mesh == "1" else None,
        parallel=None if mesh == "1" else parallel_config(mesh, rules),
        gradient_accumulate_steps=accumulate,
        **{"logger": xt.LoggerConfig(log_every_n_steps=1, log_tools=[]), **config},
    )
    trainer.logger = probes.Memory()
    return trainer


def loader(kind: str, rows: int = ROWS) -> xt.ArrayLoader:
    """Returns the batches of a kind, shuffled anew for each pass."""
    return xt.ArrayLoader(KINDS[kind][3](), batch_size=rows, shuffle=True, seed=3)


class Course:
    """What a run did: its order, its losses, its end.

    Attributes:
        order: For each step two numbers that tell which examples it took.
        losses: The mean loss of each step.
        rng: The key that the steps' keys are folded from.
        start: Parameters and collections before training, on the host.
        end: The same after it.
    """

    def __init__(self, trainer: Any, kind: str, steps: int, rows: int = ROWS) -> None:
        self.rng = jax.random.clone(trainer.state.rng)
        self.start = variables_of(trainer)
        trainer.train_model(loader(kind, rows), num_train_steps=steps)
        logged = [row for _, row in trainer.logger.rows("train")]
        self.order = [(row["ids_sum"], row["id_squares_sum"]) for row in logged]
        self.losses = np.array([row["loss_mean"] for row in logged])
        self.end = variables_of(trainer)


def variables_of(trainer: Any) -> Any:
    """Returns parameters and mutable collections on the host."""
    return zoo.host({"params": trainer.state.params, **trainer.state.mutable_variables})


def relative_difference(found: Any, expected: Any) -> float:
    """Returns the largest difference of two trees, each leaf against its own largest number."""

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))

    return max(jax.tree.leaves(jax.tree.map(one, found, expected)))


def total_bytes(tree: Any) -> int:
    """Returns the bytes of a tree's arrays, each counted once."""
    return num_bytes(tree)


def device_bytes(tree: Any) -> int:
    """Returns the bytes of a tree's arrays that the fullest device holds."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            for shard in leaf.addressable_shards:
                held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def compile_step(trainer: Any) -> Any:
    """Returns the compiled training step of a trainer, for the shapes of its example batch."""
    batch = trainer.prepare_train_batch(trainer.exmp_batch)
    window = trainer.compiled_train_step.new_window()
    whole, rows = trainer.batch_layout.replicated, trainer.batch_layout.sharding(batch.rows)
    state = jax.tree.map(lambda x: x.sharding, trainer.state)
    return (
        jax.jit(
            trainer.create_training_step_function(),
            in_shardings=(state, rows, rows, whole),
            out_shardings=(state, whole, whole),
            donate_argnums=(0, 3),
        )
        .lower(trainer.state, batch.data, batch.row_mask, window)
        .compile()
    )

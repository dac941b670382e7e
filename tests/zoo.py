"""Small models, trainers and data that several tests share, and what is measured of a run."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import xtrainer as xt
from xtrainer.testing.faults import full_disk as full_disk  # tests of every room use it


class MLP(nn.Module):
    """Two layers; with BatchNorm, dropout and one sown scalar on request."""

    width: int = 8
    classes: int = 3
    batch_norm: bool = False
    dropout: float = 0.0
    records: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width)(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.relu(x)
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.records:
            self.sow("intermediates", "activation", x.mean())
        return nn.Dense(self.classes)(x)


class Classifier(xt.TrainerModule):
    """The class of the README."""

    model_class = MLP

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch.inputs, train=train, rngs={"dropout": rng})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return loss, ({"accuracy": logits.argmax(-1) == batch.targets}, {})


class ScalarClassifier(Classifier):
    """The same loss and accuracy as means, which no padding can be masked out of."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, (metrics, mutable) = super().loss_function(params, apply_fn, batch, rng, train)
        return loss.mean(), ({"accuracy": metrics["accuracy"].mean()}, mutable)


class PairClassifier(Classifier):
    """The same loss and accuracy as sums and their weights."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, (metrics, mutable) = super().loss_function(params, apply_fn, batch, rng, train)
        accuracy = {"value": metrics["accuracy"].sum(), "count": loss.size}
        return {"value": loss.sum(), "count": loss.size}, ({"accuracy": accuracy}, mutable)


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


def devices(count: int) -> jax.sharding.Mesh:
    """Returns a mesh of the first devices, all on the data axis."""
    return xt.build_mesh(xt.ParallelConfig(), jax.devices()[:count])


def optimizer(name: str = "sgd", lr: float = 0.1, **kwargs: Any) -> xt.OptimizerConfig:
    """Returns an optimizer with a constant learning rate."""
    return xt.OptimizerConfig(name=name, scheduler=xt.SchedulerConfig(lr=lr), **kwargs)


def file_logger(folder: Path, every: int = 1, *tools: xt.LoggerToolConfig) -> xt.LoggerConfig:
    """Returns a logger that writes each row at once to files of ``folder``, and to other tools."""
    return xt.LoggerConfig(
        log_every_n_steps=every,
        log_path=str(folder),
        log_tools=[xt.FileLoggerConfig(), *tools],
        write_interval_s=0.0,
    )


def rows_of(folder: Path, mode: str) -> dict[int, dict[str, float]]:
    """Returns the logged metrics of one set by step, without measured times.

    Raises:
        ValueError: If a step was logged twice.
    """
    rows = [row for row in xt.read_metrics(folder) if row["set"] == mode]
    steps = [row["step"] for row in rows]
    if len(set(steps)) < len(steps):
        raise ValueError(f"rows of {mode}: {steps}")
    return {
        row["step"]: {k: v for k, v in row["metrics"].items() if not k.endswith("time_s")}
        for row in rows
    }


def write_sources(folder: Path, functions: int) -> Path:
    """Fills a folder with 60 small Python files, as text to train on; returns it."""
    for index in range(60):
        lines = [f"def function_{index}_{i}(x):\n    return x + {i}\n" for i in range(functions)]
        (folder / f"module_{index}.py").write_text("\n".join(lines))
    return folder


def host(tree: Any) -> Any:
    """Returns the tree as NumPy arrays; keys as their data."""

    def fetch(x: Any) -> np.ndarray:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.array(jax.device_get(x))

    return jax.tree.map(fetch, tree)


def assert_same(first: Any, second: Any) -> None:
    """Fails unless two trees of arrays are equal, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, host(first), host(second))


def assert_close(first: Any, second: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Fails unless two trees of arrays are equal up to rounding."""
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)  # noqa: E731
    jax.tree.map(close, host(first), host(second))


@contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Counts by name what is compiled inside; the steps are ``train_step`` and ``eval_step``."""
    found: Counter[str] = Counter()

    def note(event: str, duration: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found[str(details.get("fun_name")).removeprefix("jit(").removesuffix(")")] += 1

    for thread in threading.enumerate():
        if thread.name.startswith("compile-"):  # of an earlier trainer
            thread.join()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def files_in(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Returns change time, inode and content of every file of a folder, and its folders."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }

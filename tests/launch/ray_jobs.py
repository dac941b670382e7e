"""What the workers of Ray's tests run: importable, so that Ray need not send the code."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import xtrainer as xt
from xtrainer.launch import ray
from xtrainer.loggers import LoggerTool, LoggerToolConfig


def nothing() -> None:
    """Returns nothing."""


def _spread(value: float) -> jax.Array:
    """Returns one element a device, over all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))
    local = np.full((jax.local_device_count(),), value, np.float32)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P("d")), local)


def _total(x: jax.Array) -> jax.Array:
    whole = NamedSharding(x.sharding.mesh, P())  # type: ignore[attr-defined]
    return jax.jit(jnp.sum, out_shardings=whole)(x)


def values(scale: float) -> dict[str, Any]:
    """Returns an array of each kind, and reports three steps."""
    x = _spread(scale * (jax.process_index() + 1))
    for step in (1, 2):
        ray.report({"total": _total(x), "process": jax.process_index()}, step)
    ray.report({"accuracy": 0.5}, 2)
    return {
        "spread": x,
        "replicated": _total(x),
        "own": jnp.full((2,), jax.process_index(), jnp.bfloat16),
        "key": jax.random.key(3),
        "name": os.environ["JOB_NAME"],
        "ours": jax.process_index() + 10,
    }


def only_main_returns_spread() -> Any:
    """Returns an array on process 0 that the others would have to help to gather."""
    x = _spread(1.0)
    return x if jax.process_index() == 0 else None


def fail_beside_a_collective() -> None:
    """Fails on process 1, while process 0 waits for it."""
    if jax.process_index() == 1:
        raise ValueError("the data of process 1 is broken")
    _total(_spread(1.0)).block_until_ready()


def die_once(marker: str) -> int:
    """Kills process 1 at its first start, beside a collective; returns how often it started."""
    starts = Path(marker)
    count = int(starts.read_text()) if starts.exists() else 0
    if jax.process_index() == 1:
        starts.write_text(str(count + 1))
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    ray.report({"loss": float(_total(_spread(1.0)))}, 1)
    return int(starts.read_text())


class _RayLogger(LoggerTool):
    def log_metrics(self, metrics: dict[str, float], step: int, mode: str, epoch: int) -> None:
        ray.report({f"{mode}/{key}": value for key, value in metrics.items()}, step)


@dataclass(frozen=True, kw_only=True)
class RayLoggerConfig(LoggerToolConfig):
    """Sends every row to the driver."""

    def create(self, folder: Path | None) -> LoggerTool:
        """Returns the tool."""
        return _RayLogger()


def train(on_ray: bool, fsdp: int = 1) -> Any:
    """Trains two epochs; returns the parameters."""
    import zoo

    tools: list[LoggerToolConfig] = [RayLoggerConfig()] if on_ray else []
    trainer = zoo.make_trainer(
        logger=xt.LoggerConfig(log_every_n_steps=2, log_path=None, log_tools=tools),
        parallel=xt.ParallelConfig(fsdp_axis_size=fsdp, fsdp_min_weight_size=1),
    )
    trainer.train_model(zoo.loader(), zoo.loader(), num_epochs=2)
    return trainer.state.params

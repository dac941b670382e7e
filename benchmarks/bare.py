"""What would a person write by hand? Jitted loops over a donated state, without a framework."""

import functools
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.models import Batch, Task

Step = Callable[..., tuple[Any, Any, jax.Array]]


def plain_step(task: Task) -> Step:
    """Returns ``step(params, opt_state, batch) -> (params, opt_state, loss)``."""

    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, opt_state = task.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def plain_jit(task: Task) -> Step:
    """Returns the step compiled for one device."""
    return jax.jit(plain_step(task), donate_argnums=(0, 1))


def guarded_step(task: Task) -> Step:
    """Returns a step that does what the trainer's does, as one would write it down.

    The norms of gradient and parameters, the sums of a window of metrics, and a guard that leaves
    everything as it was where loss or gradient is not finite. What it carries between steps is
    ``(opt_state, sums, refused)``, see :meth:`BareLoop.guarded`.
    """

    def step(params: Any, carried: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        opt_state, sums, refused = carried
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        norms = optax.global_norm(grads), optax.global_norm(params)
        updates, new_opt_state = task.optimizer.update(grads, opt_state, params)
        finite = jnp.isfinite(loss) & jnp.isfinite(norms[0])
        measured = sums + jnp.stack([loss, *norms, jnp.ones(())])
        new = (optax.apply_updates(params, updates), new_opt_state, measured)
        old = (params, opt_state, sums)
        params, opt_state, sums = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
        return params, (opt_state, sums, refused + ~finite), loss

    return step


def scan_step(task: Task, pieces: int) -> Step:
    """Returns a step that scans over micro-batches and takes the mean of their gradients."""

    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        parts = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), batch)

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(task.loss)(params, part)), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (loss, grads), _ = jax.lax.scan(add, zeros, parts)
        grads = jax.tree.map(lambda x: x / pieces, grads)
        updates, opt_state = task.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss / pieces

    return step


def data_parallel_jit(step: Step) -> Step:
    """Returns the step compiled for all devices: the state on each, the rows divided."""
    count = len(jax.devices())
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    inputs, outputs = (whole, whole, rows), (whole, whole, whole)
    return jax.jit(step, in_shardings=inputs, out_shardings=outputs, donate_argnums=(0, 1))


class BareLoop:
    """A hand-written loop that can be run a few steps at a time.

    Args:
        step: Compiled and donating, of :func:`plain_step` or :func:`scan_step`.
        params: Copied, so that both sides begin with equal parameters.
        optimizer: Any Optax transformation.
        batches: Read again and again, as the other side does.
        ahead: Steps that may be dispatched before the first of them has ended; None: all.

    Attributes:
        params: After the newest step.
        opt_state: The same.
        loss: The same; it stays on the device.
    """

    def __init__(
        self,
        step: Step,
        params: Any,
        optimizer: optax.GradientTransformation,
        batches: list[Batch],
        ahead: int | None = None,
    ) -> None:
        self.step = step
        self.params = jax.tree.map(jnp.array, jax.device_get(params))
        self.opt_state = jax.jit(optimizer.init)(self.params)
        self.batches: Iterator[Batch] = cycle(batches)
        self.loss = jnp.zeros(())
        self.ahead = ahead

    @classmethod
    def of(cls, task: Task, params: Any, **settings: Any) -> "BareLoop":
        """Returns the plain loop of a task, compiled for one device."""
        return cls(plain_jit(task), params, task.optimizer, task.batches, **settings)

    @classmethod
    def on_all_devices(cls, task: Task, params: Any) -> "BareLoop":
        """Returns the plain loop of a task; data parallel where there are several devices."""
        if len(jax.devices()) == 1:
            return cls.of(task, params)
        step = data_parallel_jit(plain_step(task))
        # More steps in flight would abort a run on CPU devices.
        return cls(step, params, task.optimizer, task.batches, ahead=2)

    @classmethod
    def guarded(cls, task: Task, params: Any, **settings: Any) -> "BareLoop":
        """Returns the loop that does the same arithmetic as the trainer, for one device."""
        step = jax.jit(guarded_step(task), donate_argnums=(0, 1))
        loop = cls(step, params, task.optimizer, task.batches, **settings)
        loop.opt_state = (loop.opt_state, jnp.zeros(4), jnp.zeros((), jnp.int32))
        return loop

    def run(self, steps: int) -> float:
        """Takes some steps and returns their seconds, until the last of them has ended."""
        start = time.perf_counter()
        if self.ahead is None:
            self._run_freely(steps)
        else:
            self._run_bounded(steps, self.ahead)
        jax.block_until_ready((self.params, self.loss))
        return time.perf_counter() - start

    def _run_freely(self, steps: int) -> None:
        step, batches = self.step, self.batches
        params, opt_state, loss = self.params, self.opt_state, self.loss
        for _ in range(steps):
            params, opt_state, loss = step(params, opt_state, next(batches))
        self.params, self.opt_state, self.loss = params, opt_state, loss

    def _run_bounded(self, steps: int, ahead: int) -> None:
        losses = []
        for _ in range(steps):
            self.params, self.opt_state, self.loss = self.step(
                self.params, self.opt_state, next(self.batches)
            )
            losses.append(self.loss)
            if len(losses) > ahead:
                losses.pop(0).block_until_ready()


def evaluate(task: Task) -> Callable[[Any, Any], tuple[float, float]]:
    """Returns a hand-written evaluation: mean loss and accuracy over the batches of a loader."""

    @functools.partial(jax.jit, donate_argnums=1)
    def add(params: Any, sums: Any, batch: Any) -> Any:
        logits = task.model.apply({"params": params}, batch["inputs"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        correct = logits.argmax(-1) == batch["targets"]
        return sums + jnp.stack([loss.sum(), correct.sum(), jnp.float32(loss.size)])

    def run(params: Any, loader: Any) -> tuple[float, float]:
        sums = jnp.zeros(3)
        for batch in loader:
            sums = add(params, sums, batch)
        loss, correct, count = jax.device_get(sums)
        return float(loss / count), float(correct / count)

    return run


def memory_of(compiled: Any) -> int | None:
    """Returns the bytes of arguments and temporaries; None where the backend does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return int(found.temp_size_in_bytes + found.argument_size_in_bytes)

"""The bare side of peers on JAX, and what their adapters share."""

from typing import Any

import jax
import numpy as np

from benchmarks.bare import BareLoop, evaluate, scan_step
from benchmarks.models import Task
from benchmarks.peers.peer import Course, Evaluate
from benchmarks.saving import SavingLoop


def make_bare(task: Task, params: Any, course: Course) -> BareLoop:
    """Returns the hand-written loop of a course."""
    if course.pieces > 1:
        step = jax.jit(scan_step(task, course.pieces), donate_argnums=(0, 1))
        return BareLoop(step, params, task.optimizer, task.batches)
    if course.saves:
        loop = SavingLoop.of(task, params)
        loop.open(course.folder / "bare")
        return loop
    return (
        BareLoop.on_all_devices(task, params) if course.all_devices else BareLoop.of(task, params)
    )


def bare_evaluate(task: Task, params: Any) -> Evaluate:
    """Returns the hand-written evaluation of a task."""
    run, params = evaluate(task), jax.device_put(params)
    return lambda length: run(params, task.loader(length))


def on_host(params: Any) -> Any:
    """Returns copies of the parameters in the host's memory."""
    return jax.tree.map(np.array, params)

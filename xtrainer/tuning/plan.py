"""What will a run need? All that can be known before it: shapes, bytes, operations, lengths."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from xtrainer.data import batch_spec, num_rows
from xtrainer.errors import ConfigError
from xtrainer.parallel import Collective, collectives_of
from xtrainer.step import count_flops
from xtrainer.trainer import TrainerModule
from xtrainer.trainer.nnx_model import model_name
from xtrainer.tuning.course import Checkpoints, Schedule, checkpoints, make_schedule, schedule_notes
from xtrainer.tuning.layout import (
    BatchFacts,
    ParameterRow,
    batch_facts,
    batch_notes,
    batch_problems,
    left_whole,
    param_layout,
    parameter_rows,
)
from xtrainer.tuning.memory import StepMemory, measure_memory
from xtrainer.types import JSON, BatchLike


@dataclass(frozen=True)
class StepPlan:
    """What one compiled step needs.

    Attributes:
        rows: Rows of its batch, padding included.
        memory: Bytes on one device.
        compiled: Whether ``memory`` counts what only the compiler knows.
        flops: Floating point operations of all devices together; None: not known.
        collectives: What it sends between devices.
    """

    rows: int
    memory: StepMemory
    compiled: bool = False
    flops: float | None = None
    collectives: tuple[Collective, ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """What a run will need, and why it cannot be.

    Attributes:
        platform: ``cpu``, ``gpu`` or ``tpu``.
        device_kind: What JAX calls the devices.
        num_devices: How many.
        mesh: Sizes of the mesh by axis.
        model: The class of the model.
        parameters: The parameter table.
        batch: How a training batch is divided.
        train: The training step.
        evaluation: The evaluation step.
        schedule: Length and learning rate.
        checkpoints: What each checkpoint callback keeps.
        memory_limit: Bytes that one device has for the run; None: not asked.
        problems: Why the run cannot be as it is; empty where the plan holds.
        notes: What should be known besides.
    """

    platform: str
    device_kind: str
    num_devices: int
    mesh: dict[str, int]
    model: str
    parameters: tuple[ParameterRow, ...]
    batch: BatchFacts
    train: StepPlan
    evaluation: StepPlan
    schedule: Schedule
    checkpoints: tuple[Checkpoints, ...]
    memory_limit: int | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the run."""
        return not self.problems

    def to_json(self) -> dict[str, JSON]:
        """Returns the plan as JSON values; each step's memory has its ``total``."""
        found: dict[str, Any] = dataclasses.asdict(self)
        for name, step in (("train", self.train), ("evaluation", self.evaluation)):
            found[name]["memory"]["total"] = step.memory.total
        return {"holds": self.holds, **_plain(found)}


def plan_run(
    trainer: TrainerModule,
    num_epochs: int | None = None,
    num_train_steps: int | None = None,
    steps_per_epoch: int | None = None,
    *,
    eval_rows: int | None = None,
    compile_steps: bool = True,
    memory_limit: int | None = None,
) -> RunPlan:
    """Returns what a run of a trainer will need; nothing of it is run.

    Args:
        trainer: A trainer; one of :func:`xtrainer.trainer.shapes_only` allocates nothing.
        num_epochs: As for ``train_model``, and so the next two; none of them: the length of the
            run is not known.
        num_train_steps: Steps in all.
        steps_per_epoch: Steps per epoch.
        eval_rows: Rows of an evaluation batch; None: as many as in the example batch.
        compile_steps: Compile the steps; otherwise only shapes are looked at.
        memory_limit: Bytes that one device has for the run.

    Example:
        >>> import flax.linen as nn, optax
        >>> from xtrainer.trainer import ModelConfig, TrainerConfig, shapes_only
        >>> class Smallness(TrainerModule):
        ...     def loss_function(self, params, apply_fn, batch, rng, train=True):
        ...         return (apply_fn({"params": params}, batch["inputs"]) ** 2).mean(-1), ({}, {})
        >>> model = ModelConfig(model_class=nn.Dense, model_config={"features": 2})
        >>> batch = {"inputs": jax.ShapeDtypeStruct((7, 4), "float32")}
        >>> with shapes_only():
        ...     trainer = Smallness(TrainerConfig(logger=None), model, optax.sgd(1.0), batch)
        >>> plan_run(trainer, num_train_steps=9).problems[0][:52]
        'A batch of 7 rows does not divide over the 8 devices'
    """
    layout, batch = param_layout(trainer), batch_facts(trainer)
    schedule, mistakes = _schedule(trainer, (num_epochs, num_train_steps, steps_per_epoch))
    problems = [*batch_problems(batch), *mistakes]
    notes = [*batch_notes(batch), *layout.unused, *left_whole(trainer, layout)]
    notes.extend(schedule_notes(trainer, schedule))
    if compile_steps and (reason := _why_not_compiled(trainer, problems)):
        compile_steps, notes = False, [*notes, f"The steps were not compiled: {reason}"]
    train = _plan_step(trainer, batch.rows, True, compile_steps)
    evaluation = _plan_step(trainer, _eval_rows(trainer, eval_rows), False, compile_steps)
    notes += _compiler_notes(trainer, train)
    problems += _memory_problems({"training": train, "evaluation": evaluation}, memory_limit)
    return RunPlan(
        **_device_facts(trainer),
        model=model_name(trainer.model),
        parameters=parameter_rows(trainer.state.params, layout),
        batch=batch,
        train=train,
        evaluation=evaluation,
        schedule=schedule,
        checkpoints=checkpoints(trainer, schedule.steps),
        memory_limit=memory_limit,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _device_facts(trainer: TrainerModule) -> dict[str, Any]:
    device = trainer.mesh.devices.ravel()[0]
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": trainer.mesh.size,
        "mesh": {str(name): size for name, size in trainer.mesh.shape.items()},
    }


def _schedule(
    trainer: TrainerModule, lengths: tuple[int | None, ...]
) -> tuple[Schedule, tuple[str, ...]]:
    """Returns the schedule, and the mistakes in the lengths, which then are left out."""
    try:
        return make_schedule(trainer, *lengths), ()
    except ConfigError as error:
        return make_schedule(trainer, None, None, None), error.problems


def _why_not_compiled(trainer: TrainerModule, problems: list[str]) -> str | None:
    if problems:
        return "the run cannot be as it is."
    if trainer.trainer_config.debug:
        return "trainer.debug leaves them uncompiled in the run as well."
    return None


def _eval_rows(trainer: TrainerModule, asked: int | None) -> int:
    rows = num_rows(trainer.exmp_batch) if asked is None else asked
    shards = trainer.batch_layout.num_shards
    return -(-rows // shards) * shards if trainer.prepare_eval_batch.paddable else rows


def _compiler_notes(trainer: TrainerModule, step: StepPlan) -> list[str]:
    if not step.compiled or trainer.mesh.devices.ravel()[0].platform != "cpu":
        return []
    return [
        "What only a compiler knows (temporaries, outputs, collectives) is told by that of the "
        "CPU, which does not count what its fused library calls hold. For other devices plan with "
        "them, or for a TPU ahead of time."
    ]


def _plan_step(trainer: TrainerModule, rows: int, train: bool, compile_steps: bool) -> StepPlan:
    state, data = trainer.state, _placed_spec(trainer, rows)
    in_flight = trainer.trainer_config.max_steps_in_flight
    if not compile_steps:
        return StepPlan(rows, measure_memory(state, data, None, in_flight))
    if train:
        executor, step = trainer.compiled_train_step, trainer.create_training_step_function()
        window = jax.eval_shape(trainer.init_train_metrics)
    else:
        executor, step = trainer.compiled_eval_step, trainer.create_evaluation_step_function()
        window = jax.eval_shape(trainer.init_eval_metrics)
    lowered = executor.lower(state, data)
    compiled = lowered.compile()
    memory = measure_memory(state, data, compiled, in_flight, reads_optimizer=train)
    row_mask = jax.ShapeDtypeStruct((rows,), bool)
    arguments = (state, data, row_mask, window)
    flops = count_flops(step, *arguments)
    return StepPlan(rows, memory, True, flops, collectives_of(compiled.as_text() or ""))


def _placed_spec(trainer: TrainerModule, rows: int) -> BatchLike:
    """Returns the shapes of a global batch with their sharding."""
    sharding = trainer.batch_layout.sharding(rows)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding),
        batch_spec(trainer.exmp_batch),
    )


def _memory_problems(steps: dict[str, StepPlan], limit: int | None) -> list[str]:
    found = []
    for name, step in steps.items():
        total, least = step.memory.total, "" if step.compiled else "at least "
        if limit is not None and total > limit:
            found.append(
                f"The {name} step needs {least}{total:,} bytes of each device, {total - limit:,} "
                f"more than the limit of {limit:,}. Divide the state over more devices "
                "(fsdp_axis_size, model_axis_size), compute activations again (remat), or make the "
                "batch or the micro-batch smaller."
            )
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value

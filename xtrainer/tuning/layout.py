"""Where would each parameter lie, who decided that, and what does not divide?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.data import num_rows
from xtrainer.metrics import spec_text
from xtrainer.parallel import ParamLayout
from xtrainer.parallel.rules import DEFAULT
from xtrainer.trainer import TrainerModule
from xtrainer.trainer.assemble import model_layout
from xtrainer.tree import device_bytes, flatten_with_paths, num_bytes, num_elements


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of the table.

    Attributes:
        path: Where it stands in the model.
        shape: Of the whole array.
        dtype: Its name.
        spec: Which mesh axes of more than one device each dimension is spread over, or ``whole``.
        elements: Of the whole array.
        num_bytes: Of the whole array.
        device_bytes: What one device holds.
        decided_by: The model's metadata, a rule (its pattern) or the default.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    elements: int
    num_bytes: int
    device_bytes: int
    decided_by: str


@dataclass(frozen=True)
class BatchFacts:
    """How a training batch is divided.

    Attributes:
        rows: Rows of the whole batch.
        shards: Parts it is divided into, over the data and FSDP axes.
        rows_per_device: Rows that one device holds, rounded up.
        micro_batches: Pieces that are computed one after the other.
        leaves: Shape and dtype of each leaf by its path.
    """

    rows: int
    shards: int
    rows_per_device: int
    micro_batches: int
    leaves: dict[str, str]


def param_layout(trainer: TrainerModule) -> ParamLayout:
    """Returns how the parameters of a trainer are laid out, and why."""
    exmp_input = jax.eval_shape(trainer.batch_to_input, trainer.exmp_batch)
    return model_layout(
        trainer.run_model_init, exmp_input, trainer.mesh, trainer.model_config.parallel
    )


def parameter_rows(params: Any, layout: ParamLayout) -> tuple[ParameterRow, ...]:
    """Returns the rows of the parameter table, in the order of the tree."""
    return tuple(
        ParameterRow(
            path,
            tuple(leaf.shape),
            str(leaf.dtype),
            spec_text(_without_idle_axes(leaf)),
            num_elements(leaf),
            num_bytes(leaf),
            device_bytes(leaf),
            layout.origins[path],
        )
        for path, leaf in flatten_with_paths(params).items()
    )


def _without_idle_axes(leaf: Any) -> Any:
    mesh, spec = leaf.sharding.mesh, []
    for names in leaf.sharding.spec:
        several = names if isinstance(names, tuple) else (names,)
        kept = tuple(name for name in several if name is not None and mesh.shape[name] > 1)
        spec.append(kept[0] if len(kept) == 1 else kept or None)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def left_whole(trainer: TrainerModule, layout: ParamLayout) -> Iterator[str]:
    """Yields a sentence for each large parameter that the FSDP axis does not divide."""
    parallel, mesh = trainer.model_config.parallel, trainer.mesh
    parts = mesh.shape.get(parallel.fsdp_axis_name, 1)
    for path, leaf in flatten_with_paths(trainer.state.params).items():
        spread = any(axis is not None for axis in layout.specs[path])
        large = leaf.size >= parallel.fsdp_min_weight_size
        if parts > 1 and large and not spread and layout.origins[path] == DEFAULT:
            yield (
                f"{path}: none of the dimensions {tuple(leaf.shape)} divides by "
                f"{parallel.fsdp_axis_name}={parts}; every device holds all of its "
                f"{num_bytes(leaf):,} bytes."
            )


def batch_facts(trainer: TrainerModule) -> BatchFacts:
    """Returns how the training batch of a trainer is divided."""
    rows, shards = num_rows(trainer.exmp_batch), trainer.batch_layout.num_shards
    leaves = {
        path or "batch": f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in flatten_with_paths(trainer.exmp_batch).items()
    }
    pieces = trainer.trainer_config.gradient_accumulate_steps
    return BatchFacts(rows, shards, math.ceil(rows / shards), pieces, leaves)


def batch_problems(facts: BatchFacts) -> Iterator[str]:
    """Yields a sentence for each number that does not divide the rows of a batch."""
    if facts.rows % facts.micro_batches:
        yield (
            f"A batch of {facts.rows} rows does not divide into gradient_accumulate_steps="
            f"{facts.micro_batches} micro-batches of one size. Change the batch size or the number "
            "of steps."
        )
    if facts.rows % facts.shards:
        yield (
            f"A batch of {facts.rows} rows does not divide over the {facts.shards} devices of the "
            "data and FSDP axes. Change the batch size, or give other axes more of the devices."
        )


def batch_notes(facts: BatchFacts) -> Iterator[str]:
    """Yields a sentence where a batch divides over the devices and its micro-batches do not."""
    micro = facts.rows // facts.micro_batches
    if not list(batch_problems(facts)) and micro % facts.shards:
        yield (
            f"A micro-batch of {micro} rows does not divide over the {facts.shards} devices of the "
            "data and FSDP axes: some of them compute padding, or the same rows as others."
        )

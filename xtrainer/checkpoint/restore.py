"""How does a state come back? On today's devices, checked leaf by leaf, ready to be donated."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from xtrainer.checkpoint.backend import read_part, read_state
from xtrainer.checkpoint.commit import read_commit
from xtrainer.checkpoint.fingerprint import differing
from xtrainer.checkpoint.items import compare_leaves, listed
from xtrainer.checkpoint.metadata import read_meta, require_step
from xtrainer.checkpoint.shards import join_shards, shards_of
from xtrainer.errors import CheckpointCorruptError, CheckpointError, did_you_mean
from xtrainer.tree import flatten_with_paths, num_bytes
from xtrainer.types import PyTree

_COPY_BYTES = 2**25


def restore_state(step_folder: Path, template: PyTree) -> PyTree:
    """Returns the state of a step; every buffer is JAX's own and can be donated.

    Args:
        step_folder: As :func:`find_step` gives it. Nothing in it is changed.
        template: ``jax.ShapeDtypeStruct`` leaves with today's shardings, or arrays that have them.
            The mesh need not be the one of the save.

    Raises:
        CheckpointNotFoundError: If the folder is not a committed step.
        CheckpointError: If paths, shapes or dtypes differ (nothing is cast).
        CheckpointCorruptError: If reading fails, or the values are not those that were saved.
    """
    step_folder = require_step(step_folder)
    template = _as_structs(template)
    _check_leaves(step_folder, read_meta(step_folder)["leaves"], flatten_with_paths(template))
    state = _read(step_folder, template, read_state)
    _check_values(step_folder, state)
    return state


def restore_partial(step_folder: Path, names: Sequence[str], template: PyTree) -> dict[str, Any]:
    """Returns some parts of a state, such as the parameters saved with another optimizer.

    Args:
        step_folder: As :func:`find_step` gives it. Nothing in it is changed.
        names: Top-level names of the state, for example ``["params", "mutable_variables"]``.
        template: A state, or a mapping, that has these names; leaves as in
            :func:`restore_state`. Its other parts are not looked at.

    Raises:
        CheckpointNotFoundError: If the folder is not a committed step.
        CheckpointError: If a name is unknown, or the named parts differ in a path, shape or dtype.
        CheckpointCorruptError: If reading fails, or the values are not those that were saved.
    """
    step_folder = require_step(step_folder)
    leaves: dict[str, Any] = read_meta(step_folder)["leaves"]
    parts = {name: _as_structs(_part(template, name)) for name in names}
    saved = {path: leaf for path, leaf in leaves.items() if path.split("/", 1)[0] in parts}
    _check_leaves(step_folder, saved, flatten_with_paths(parts))
    # A part without leaves (a model without batch statistics) has no entry on disk to ask for.
    filled = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    restored = _read(step_folder, filled, read_part) if filled else {}
    _check_values(step_folder, restored)
    return {**parts, **restored}


def _part(template: PyTree, name: str) -> PyTree:
    fields = template if isinstance(template, dict) else vars(template)
    if name not in fields:
        raise CheckpointError(
            f"names: found {name!r}, expected names of the state. {did_you_mean(name, fields)}"
        )
    return fields[name]


def _as_structs(template: PyTree) -> PyTree:
    """Returns the template without its arrays, so that none is kept alive; all have a sharding."""
    lacking = [
        path for path, leaf in flatten_with_paths(template).items()
        if not isinstance(getattr(leaf, "sharding", None), jax.sharding.Sharding)
    ]  # fmt: skip
    if lacking:
        raise CheckpointError(
            "template: found leaves without a sharding, expected jax.ShapeDtypeStruct(shape, "
            f"dtype, sharding=...). Give these one:\n{listed(lacking)}"
        )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), template
    )


def _check_leaves(step_folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    problems = compare_leaves(saved, wanted)
    if problems:
        raise CheckpointError(
            f"{step_folder}: found a state that differs from the one to restore in "
            f"{len(problems)} places, expected none:\n{listed(problems)}\nRestore with the model "
            "and optimizer config of the checkpoint, or restore only the parts that agree."
        )


def _check_values(step_folder: Path, state: PyTree) -> None:
    """Compares the values on the devices with what was on them when the step was saved."""
    with jax.transfer_guard("allow"):
        wrong = differing(read_commit(step_folder).fingerprints, state)
    if wrong:
        raise CheckpointCorruptError(
            f"{step_folder}: the values of {len(wrong)} arrays are not those that were saved:\n"
            f"{listed(wrong)}\nUse another step.",
            int(step_folder.name),
        )


def _read(step_folder: Path, template: Any, reader: Callable[[Path, Any], Any]) -> Any:
    try:
        with jax.transfer_guard("allow"):  # also called inside the guarded training loop
            return _own(reader(step_folder, template))
    except Exception as error:  # Orbax raises half a dozen types, a bare Exception among them
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointCorruptError(
            f"{step_folder}: the state cannot be read ({reason}). The files are damaged or were "
            "written for another structure; use another step.",
            int(step_folder.name),
        ) from error


def _own(tree: PyTree) -> PyTree:
    """Returns a copy in XLA's memory; a reader mostly lends its own, which cannot be donated.

    Some MiB at a time, so that each copy takes the memory of what was copied before it, and without
    compiling.
    """
    leaves, treedef = jax.tree.flatten(tree)
    for group in _groups(leaves):
        parts = [[part for _, part in shards_of(leaves[i])] for i in group]
        shardings = [[part.sharding for part in of_leaf] for of_leaf in parts]
        copies = jax.block_until_ready(jax.device_put(parts, shardings, may_alias=False))
        for i, copied in zip(group, copies, strict=True):
            copy = join_shards(leaves[i], copied)
            leaves[i].delete()
            leaves[i] = copy
    return jax.tree.unflatten(treedef, leaves)


def _groups(leaves: list[jax.Array]) -> Iterable[list[int]]:
    """Yields indices of leaves, some MiB at a time."""
    group: list[int] = []
    size = 0
    for i, leaf in enumerate(leaves):
        group.append(i)
        size += num_bytes(leaf)
        if size >= _COPY_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group

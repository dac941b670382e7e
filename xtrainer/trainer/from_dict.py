"""What is put into a trainer from a user's dictionary? Parts of a state, positions of loaders."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from xtrainer.counts import wanted_count
from xtrainer.errors import CheckpointError, LoaderError
from xtrainer.optim import forget_average
from xtrainer.parallel import copy_tree, put_global
from xtrainer.state import TrainState
from xtrainer.tree import flatten_with_paths
from xtrainer.types import JSON, PyTree, StatefulLoader


def restore_loaders(state_dict: Mapping[str, JSON], given: Mapping[str, Any]) -> None:
    """Puts loaders into the states of a dictionary, which may hold positions or bare states.

    Raises:
        LoaderError: If a loader has no ``set_state``.
    """
    for name, loader in given.items():
        if loader is None or name not in state_dict:
            continue
        state = state_dict[name]
        if isinstance(state, Mapping) and set(state) == {"pass_index", "batches", "state"}:
            state = state["state"]
        if not isinstance(loader, StatefulLoader):
            raise LoaderError(
                f"The {name!r} loader is a {type(loader).__name__} without get_state() and "
                "set_state(), so it cannot be put anywhere. Use load_data_loaders(), which can "
                "skip batches, or give it these methods."
            )
        loader.set_state(state)


def restore_state(state: TrainState, state_dict: Mapping[str, Any]) -> TrainState:
    """Returns a state with the parts of a dictionary in place of its own.

    Raises:
        CheckpointError: If ``params`` is missing, a key is unknown, a leaf differs in path, shape
            or dtype, or no step can have that number.
    """
    known = ("params", "step", "opt_state", "mutable_variables", "rng")
    unknown = sorted(set(state_dict) - set(known))
    if unknown or "params" not in state_dict:
        raise CheckpointError(
            f"The state dictionary has the keys {sorted(state_dict)}, expected 'params' and "
            f"perhaps {list(known[1:])}."
        )
    if "step" in state_dict:
        state_dict = {**state_dict, "step": _step_array(state_dict["step"])}
    problems, parts = [], {}
    for name, part in state_dict.items():
        old = getattr(state, name)
        problems += _differences({name: old}, {name: part})
        if not problems:
            shardings = jax.tree.map(lambda x: x.sharding, old)
            leaves = jax.tree.unflatten(jax.tree.structure(old), jax.tree.leaves(part))
            parts[name] = copy_tree(put_global(leaves, shardings), shardings)
    if problems:
        raise CheckpointError(
            "The state dictionary does not fit the trainer's state:\n  "
            + "\n  ".join(problems[:20])
        )
    if "opt_state" not in parts:
        parts["opt_state"] = forget_average(state.opt_state, put_global)
    return state.replace(**parts)


def _step_array(step: Any) -> Any:
    """Returns a step, which may be a number, as the array of a state.

    Raises:
        CheckpointError: If no step can have the number.
    """
    if not hasattr(step, "dtype") or isinstance(step, np.generic):
        number = step
    elif str(step.dtype) == "int32" and step.shape == ():
        number = int(jax.device_get(step))
    else:
        return step  # what is wrong with it is told with all that is
    if wanted := wanted_count(number):
        raise CheckpointError(f"step: found {number!r}, expected {wanted}.")
    return np.asarray(number, np.int32) if number is step else step


def _differences(old: PyTree, new: PyTree) -> list[str]:
    want, have = flatten_with_paths(old), flatten_with_paths(new)
    lines = [f"{path}: missing" for path in want if path not in have]
    lines += [f"{path}: not in the trainer's state" for path in have if path not in want]
    for path in want.keys() & have.keys():
        kinds = [f"{x.dtype}{list(x.shape)}" for x in (have[path], want[path])]
        if kinds[0] != kinds[1]:
            lines.append(f"{path}: found {kinds[0]}, expected {kinds[1]}")
    return lines

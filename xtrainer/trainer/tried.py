"""What went wrong when the model, or the loss, was tried? Its own error, and what helps."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax

from xtrainer.errors import ConfigError, XTrainerError, did_you_mean, teach
from xtrainer.trainer.nnx_model import is_nnx_class
from xtrainer.tree import flatten_with_paths

_MOST_LEAVES = 8
_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_HINTS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    (
        flax.errors.ScopeCollectionNotFound,
        "",
        'The model was given no parameters: call apply_fn({"params": params}, ...).',
    ),
    (
        flax.errors.ScopeParamShapeError,
        "",
        "The model was initialized with inputs of another shape: of what it is given only the "
        "first axis, the batch, may differ from the example batch of the trainer.",
    ),
    (
        flax.errors.InvalidRngError,
        "",
        'The model draws random numbers: call apply_fn(..., rngs={"dropout": rng}).',
    ),
    (
        TypeError,
        "unexpected keyword argument 'train'",
        "Let the model's __call__ take train=True, or do not pass it on.",
    ),
    (
        TypeError,
        "required positional argument",
        "The model is called with what batch_to_input(batch) returns, and with train=False where "
        "it takes that. Give other arguments a default, let batch_to_input return a tuple, or "
        "override run_model_init(exmp_input, init_rng).",
    ),
    (
        _NUMBERS,
        "",
        "It is compiled: it sees the shapes of arrays, not their numbers. Use jax.numpy in place "
        "of numpy and jnp.where in place of if, and keep arrays: no float(), int() or .item().",
    ),
)
"""Kinds of errors, what their messages hold, and what helps; the first that fits."""


@contextlib.contextmanager
def trying(what: str, arrays: Any) -> Iterator[None]:
    """Adds to an error of the user's code what was tried, with which shapes, and what helps.

    Args:
        what: A sentence that ends before the shapes.
        arrays: What it was tried with.
    """
    try:
        yield
    except XTrainerError:
        raise
    except Exception as error:
        teach(error, f"{what} {describe_arrays(arrays)}.", _hint(error))
        raise


def _hint(error: Exception) -> str:
    text = str(error)
    return next(
        (hint for kind, part, hint in _HINTS if isinstance(error, kind) and part in text), ""
    )


def describe_arrays(tree: Any) -> str:
    """Returns dtypes and shapes by path.

    Example:
        >>> import numpy as np
        >>> describe_arrays({"inputs": np.zeros((8, 2)), "targets": np.zeros(8, np.int32)})
        'inputs float64[8, 2], targets int32[8]'
    """
    leaves = [
        f"{path} {leaf.dtype}{list(leaf.shape)}".strip()
        for path, leaf in flatten_with_paths(tree).items()
    ]
    more = [f"and {len(leaves) - _MOST_LEAVES} more"] if len(leaves) > _MOST_LEAVES else []
    return ", ".join(leaves[:_MOST_LEAVES] + more)


def no_loss(trainer_class: type) -> TypeError:
    """Returns the error of a trainer without a loss function."""
    near = [name for name in vars(trainer_class) if "loss" in name]
    found = f" It has {', '.join(near)}: rename it." if near else ""
    error = TypeError(
        f"{trainer_class.__name__} must define loss_function(self, params, apply_fn, batch, rng, "
        f"train=True).{found}"
    )
    teach(error, "It returns loss, (metrics, {}): the loss of each example, and metrics by name.")
    return error


def check_model_class(model_class: Any) -> None:
    """Refuses a model in place of its class.

    Raises:
        ConfigError: Saying what to give instead.
    """
    if isinstance(model_class, nn.Module) or is_nnx_class(type(model_class)):
        name = type(model_class).__name__
        raise ConfigError(
            f"model.model_class: found a model, {name}(...), expected its class. Give "
            f"ModelConfig(model_class={name}, model_config={{...}}) with its arguments."
        )


def refused_arguments(model_class: Any, arguments: Any, error: TypeError) -> ConfigError:
    """Returns the error of a model's class that refuses its arguments."""
    name = getattr(model_class, "__name__", model_class)
    fields = [f for f in getattr(model_class, "__annotations__", {}) if f not in ("parent", "name")]
    unknown = [key for key in arguments if key not in fields] if _is_named(arguments) else []
    hint = f" {did_you_mean(str(unknown[0]), fields)}" if fields and unknown else ""
    return ConfigError(f"model.model_config: {name} refuses its arguments: {error}.{hint}")


def _is_named(arguments: Any) -> bool:
    return isinstance(arguments, Mapping)


def check_model(model: Any) -> None:
    """Refuses what cannot be initialized as a Linen module is.

    Raises:
        ConfigError: Saying what to do with a module of another kind.
    """
    if callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None)):
        return
    raise ConfigError(
        f"model.model_class: found {type(model).__name__}, which has no init and apply; expected "
        "a Flax module. Give the class of one, or one with init(rngs, inputs) -> variables and "
        "apply(variables, inputs)."
    )

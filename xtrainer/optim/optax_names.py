"""Which function does ``"optax.NAME"``, or a registered name, stand for?

Only public factories of Optax can be named, and what the program itself has registered.
"""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import optax
import optax.contrib

from xtrainer.errors import did_you_mean
from xtrainer.registry import OPTAX as PREFIX
from xtrainer.registry import Registry, optimizers, schedules


def optimizer_factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Returns every optimizer of Optax that takes a ``learning_rate``, as ``"optax.NAME"``.

    And those that are registered, by their names.
    """
    own = {name: optimizers.get(name) for name in optimizers}
    contrib = _public(optax.contrib, f"{PREFIX}contrib.", _is_optimizer)
    return own | _public(optax, PREFIX, _is_optimizer) | contrib


def schedule_factories() -> dict[str, Callable[..., optax.Schedule]]:
    """Returns every schedule of Optax, as ``"optax.NAME"``, and those that are registered."""
    own = {name: schedules.get(name) for name in schedules}
    return own | _public(optax, PREFIX, lambda name, _: name.endswith(("_schedule", "_decay")))


def is_factory(name: str, registered: Registry[Any]) -> bool:
    """Says whether a name asks for a function of Optax or of the program, which gets ``kwargs``."""
    return name.startswith(PREFIX) or name in registered


def taken_problems(name: str, registered: Registry[Any]) -> list[str]:
    """Returns a sentence if a name of xtrainer's own has been registered as well."""
    if name not in registered:
        return []
    return [
        f"name: found {name!r}, which is a {registered.kind} of xtrainer and was registered too. "
        "Register it under another name."
    ]


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_problems(
    name: str, factory: Callable[..., Any], kwargs: Mapping[str, Any], *given: str
) -> list[str]:
    """Returns what is wrong with a call of ``factory(**kwargs)``, found without calling it.

    Args:
        name: Name of the factory, for messages.
        factory: A function with named parameters.
        kwargs: The arguments from the config.
        given: Names of arguments that are passed besides.
    """
    every = inspect.signature(factory).parameters
    parameters = {key: one for key, one in every.items() if one.kind not in _VARIADIC}
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in every.values())
    options = [option for option in parameters if option not in given]
    found = [
        f"name: {name} must take an argument {key}, which it gets from the config."
        for key in given
        if key not in parameters and not takes_any
    ]
    for key in kwargs:
        if key in given:
            found.append(f"kwargs.{key}: {name} gets it from the config. Remove it from kwargs.")
        elif key not in options and not takes_any:
            found.append(
                f"kwargs.{key}: {name} has no such argument. {did_you_mean(str(key), options)}"
            )
    missing = [
        option
        for option in options
        if parameters[option].default is inspect.Parameter.empty and option not in kwargs
    ]
    if missing:
        found.append(f"kwargs: {name} needs a value for {', '.join(missing)}.")
    return found


def _public(
    module: ModuleType, prefix: str, wanted: Callable[[str, Any], bool]
) -> dict[str, Callable[..., Any]]:
    # A fixed table and no ``getattr`` along a dotted name: a name from a file could walk through
    # the module to any function of the program.
    members: dict[str, Any] = {
        name: member for name, member in vars(module).items() if not name.startswith("_")
    }
    return {
        f"{prefix}{name}": member
        for name, member in members.items()
        if _is_function(member) and wanted(name, member)
    }


def _is_function(member: Any) -> bool:
    return inspect.isfunction(getattr(member, "func", member))  # ``nadam`` is a partial


def _is_optimizer(name: str, member: Callable[..., Any]) -> bool:
    return not name.startswith("scale_by") and (
        "learning_rate" in inspect.signature(member).parameters
    )

"""Which activations are computed again instead of kept? Those inside modules chosen by name."""

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from xtrainer.errors import ConfigError, did_you_mean
from xtrainer.parallel.patterns import REGEX

_TRACED_FOR = jax.make_user_context(None)
"""What modules are traced for; a part of the keys of JAX's caches of traces (``nn.jit``)."""

REMAT_POLICIES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        name: getattr(jax.checkpoint_policies, name)
        for name in (
            "nothing_saveable",
            "dots_with_no_batch_dims_saveable",
            "dots_saveable",
            "everything_saveable",
        )
    }
)
"""What may be kept of a module that is computed again, by JAX's names, from nothing to all. Those
of ``jax.checkpoint_policies`` that take arguments are left to ``nn.remat`` in the model."""


class ModuleName(NamedTuple):
    """How a module may be called.

    Attributes:
        class_name: ``Block``.
        path: ``encoder/block_0``; empty for the model itself.
    """

    class_name: str
    path: str


def names_module(pattern: str, module: ModuleName) -> bool:
    """Says whether an entry of ``ParallelConfig.remat`` names a module.

    A glob of the class name (``Block``, ``*Block``) or of the path, part by part: ``block_*`` names
    ``block_0`` and not ``block_0/attention``. ``re:`` begins a regex of the whole path.

    Example:
        >>> block = ModuleName("Block", "encoder/block_0")
        >>> [names_module(p, block) for p in ("Block", "encoder/*", "block_*", "re:.*_[0-3]")]
        [True, True, False, True]
    """
    if pattern.startswith(REGEX):
        return re.fullmatch(pattern.removeprefix(REGEX), module.path) is not None
    if fnmatch.fnmatchcase(module.class_name, pattern):
        return True
    parts, wanted = module.path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


@contextmanager
def rematerialize(patterns: Sequence[str], policy: str = "nothing_saveable") -> Iterator[None]:
    """Puts every call of a Linen module that a pattern names under ``jax.checkpoint``.

    In the backward pass the module is computed again from its inputs and what the policy keeps
    (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016,
    https://arxiv.org/abs/1604.06174). The values, random masks, updated collections and sown values
    are those of the plain call. Arguments that are no arrays (``train=True``) stay Python values.
    Reaches inside ``nn.scan``.

    Args:
        patterns: See :func:`names_module`; none changes nothing.
        policy: A name of ``REMAT_POLICIES``: what is kept besides the inputs.

    Raises:
        ConfigError: Inside, if such a module is called where the model itself intercepts methods.
    """
    if not patterns:
        yield
        return

    def interceptor(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__" or not _named(patterns, context.module):
            return next_fn(*args, **kwargs)
        if next_fn is not context.orig_method:
            raise ConfigError(
                f"parallel.remat: the module {_name_of(context.module)} is called inside of an "
                "nn.intercept_methods of the model itself; these do not go together. Use nn.remat "
                "in the model and leave the name out of remat."
            )
        return _checkpointed(context.orig_method.func, context.module, args, kwargs, policy)

    with _TRACED_FOR((*patterns, policy)), nn.intercept_methods(interceptor):
        yield


@contextmanager
def record_modules() -> Iterator[list[ModuleName]]:
    """Gives a list to which every Linen module that is called inside is added."""
    seen: list[ModuleName] = []

    def interceptor(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            seen.append(_name_of(context.module))
        return next_fn(*args, **kwargs)

    # An object of its own: a trace that JAX remembers would call no module.
    with _TRACED_FOR(object()), nn.intercept_methods(interceptor):
        yield seen


def check_remat(patterns: Sequence[str], seen: Sequence[ModuleName]) -> None:
    """Raises for entries of ``ParallelConfig.remat`` that name no module of a model.

    Args:
        patterns: The entries.
        seen: All modules of the model, of :func:`record_modules`.

    Raises:
        ConfigError: For each entry that names none, with the classes that there are.
    """
    missing = [p for p in patterns if not any(names_module(p, module) for module in seen)]
    if missing and not seen:
        raise ConfigError(
            f"parallel.remat: found {list(patterns)}, and the model calls no Flax Linen module. "
            "Use jax.checkpoint (nnx.remat) in the model."
        )
    names = {name for module in seen for name in (module.class_name, module.path) if name}
    short = {name for name in names if "/" not in name}
    if missing:
        raise ConfigError(
            [
                f"parallel.remat: {pattern!r} names no module of the model. "
                f"{did_you_mean(pattern, names if '/' in pattern else short)}"
                for pattern in missing
            ]
        )


def _named(patterns: Sequence[str], module: nn.Module) -> bool:
    return any(names_module(pattern, _name_of(module)) for pattern in patterns)


def _name_of(module: nn.Module) -> ModuleName:
    return ModuleName(type(module).__name__, "/".join(module.path))


def _is_traced(x: Any) -> bool:
    # Modules and variables that are handed to a module have to be lifted as well.
    return isinstance(x, jax.Array | np.ndarray | nn.Module | nn.Variable)


def _checkpointed(method: Any, module: nn.Module, args: Any, kwargs: Any, policy: str) -> Any:
    """Returns ``method(module, *args, **kwargs)`` with its array arguments and little more kept.

    ``nn.remat`` of a class cannot be used, as the class is chosen inside the model; its form for
    functions of a bound module does the same to one call. It is given the method itself, not the
    module, so that no other interceptor sees the call twice.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if _is_traced(leaf)]
    returned: dict[str, Any] = {}

    def rematerialized(module: nn.Module, arrays: list[Any]) -> list[Any]:
        given = iter(arrays)
        filled = [next(given) if _is_traced(leaf) else leaf for leaf in leaves]
        args, kwargs = jax.tree.unflatten(tree, filled)
        returned["leaves"], returned["tree"] = jax.tree.flatten(method(module, *args, **kwargs))
        return [leaf for leaf in returned["leaves"] if _is_traced(leaf)]

    lifted = nn.remat(rematerialized, policy=REMAT_POLICIES[policy])
    outputs = iter(lifted(module, arrays))
    leaves_out = [next(outputs) if _is_traced(leaf) else leaf for leaf in returned["leaves"]]
    return jax.tree.unflatten(returned["tree"], leaves_out)

"""How does a Flax NNX module, which holds its arrays, serve as a model that is handed them?

Synopsis:
    ModelConfig(model_class=Net, model_config={"width": 64})     # an nnx.Module: wrapped by itself
    model = NNXModel(Net, width=64)                              # the same without a trainer
"""

import functools
import inspect
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.core.scope
import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epy
from flax.traverse_util import unflatten_dict

from xtrainer.errors import ConfigError, LossError
from xtrainer.parallel import unbox
from xtrainer.types import PRNGKey, PyTree

with epy.lazy_imports():  # it takes longer than the rest of Flax, and few models need it
    from flax import nnx

_STREAMS = ("params", "dropout", "default")
_MODES = ("deterministic", "use_running_average")
_NAMES = ("out_sharding", "sharding_names", "sharding")  # of axes; Flax has renamed it

_Path = tuple[str, ...]


class NNXModel:
    """A Flax NNX module as ``init`` and ``apply``, so that it serves where a Linen one does.

    ``nnx.Param`` and its subclasses are the collection ``params``; variables of other types have
    one each by their registered name (``nnx.BatchStat``: ``batch_stats``), and arrays that are no
    variables ``arrays``. Random streams are no part of them: ``apply`` seeds those that the module
    holds from its ``rngs``, so that dropout depends on the step's key alone. Axis names of
    ``nnx.with_partitioning`` are read as those of ``nn.with_partitioning``; rules among a
    variable's own metadata are not.

    A ``ModelConfig`` that names an NNX class makes one by itself.

    Args:
        module_class: The class, or a function that returns the module. It is given ``rngs`` by
            name where it takes that.
        *args: Its other arguments by place.
        **kwargs: And by name.

    Raises:
        ConfigError: If the module holds a JAX array that is neither a variable nor ``nnx.data``.

    Example:
        >>> model = NNXModel(nnx.Linear, 2, 3)
        >>> variables = model.init({"params": jax.random.key(0)})
        >>> sorted(variables["params"]), model.apply(variables, jnp.ones((4, 2))).shape
        (['bias', 'kernel'], (4, 3))
    """

    def __init__(self, module_class: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._name = getattr(module_class, "__name__", str(module_class))
        takes_rngs = _takes(module_class, "rngs")

        def make(rngs: nnx.Rngs) -> Any:
            with nnx.use_eager_sharding(False):  # the layout is the trainer's
                return module_class(*args, **({"rngs": rngs} if takes_rngs else {}), **kwargs)

        self._make = make
        shapes = nnx.eval_shape(lambda: make(nnx.Rngs(**dict.fromkeys(_STREAMS, 0))))
        self._graph, state = nnx.split(shapes)
        self._leaves = dict(nnx.to_flat_state(state))
        modules = [(p, node) for p, node in nnx.iter_graph(shapes) if isinstance(node, nnx.Module)]
        self._has_modes = any(hasattr(module, mode) for _, module in modules for mode in _MODES)
        for path, module in modules:
            self._check_arrays(path, module)

    @property
    def name(self) -> str:
        """The name of the module's class."""
        return self._name

    def init(
        self, rngs: Mapping[str, PRNGKey], *args: Any, train: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Returns new variables, with axis names in the boxes of Linen.

        Args:
            rngs: Keys by name; ``params`` for one.
            *args: As for :meth:`apply`, and not used: an NNX module has its arrays before it is
                called.
            train: The same.
            **kwargs: The same.
        """
        default = jax.random.fold_in(next(iter(rngs.values())), 1)
        streams = {"default": default, **dict.fromkeys(_STREAMS[:2], default), **rngs}
        return self._variables(self._make(nnx.Rngs(**streams)), _boxed)

    def apply(
        self,
        variables: Mapping[str, Any],
        *args: Any,
        train: bool | None = None,
        rngs: Mapping[str, PRNGKey] | None = None,
        mutable: Any = False,
        method: str = "__call__",
        **kwargs: Any,
    ) -> Any:
        """Returns the module's outputs, or ``(outputs, updates)`` where ``mutable`` names any.

        Args:
            variables: All collections that :meth:`init` has returned.
            *args: What the module is called with.
            train: See :meth:`module`; the module is given it too where it takes it by name.
            rngs: The same; where the module takes ``rngs`` it is given an ``nnx.Rngs`` of them.
            mutable: Collections whose changes are returned, as in Linen; of the others they are
                forgotten. ``intermediates`` are what the module has sown.
            method: What is called.
            **kwargs: The same by name.

        Raises:
            LossError: As :meth:`module`; for a stream that is drawn from and was given no key.
        """
        module = self.module(variables, rngs, train)
        function = getattr(module, method)
        if train is not None and _takes(function, "train"):
            kwargs["train"] = train
        if rngs is not None and _takes(function, "rngs"):
            kwargs.setdefault("rngs", nnx.Rngs(**rngs))
        outputs, sown = _captured(lambda module: getattr(module, method)(*args, **kwargs), module)
        if mutable is False or mutable is None:
            return outputs
        found = self._variables(module, _value)
        if sown:
            found["intermediates"] = nnx.to_pure_dict(sown)
        return outputs, {k: v for k, v in found.items() if flax.core.scope.in_filter(mutable, k)}

    def module(
        self,
        variables: Mapping[str, Any],
        rngs: Mapping[str, PRNGKey] | None = None,
        train: bool | None = None,
    ) -> Any:
        """Returns the module with these variables, to call, save or export as any other.

        Args:
            variables: As for :meth:`apply`.
            rngs: Keys of its random streams by name; ``default`` stands for those not named.
            train: Whether ``module.train()`` or ``module.eval()`` is called, which dropout and
                BatchNorm go by; None may stand where there are neither.

        Raises:
            LossError: If a collection is missing, or ``train`` where it matters.
        """
        if train is None and self._has_modes:
            raise LossError(
                f"{self.name} has layers that differ in training (dropout, BatchNorm): found a "
                "call without train, expected True or False. Pass on what the loss is given: "
                "apply_fn(variables, x, train=train, rngs=...)."
            )
        given = unbox(dict(variables))
        with nnx.use_eager_sharding(False):
            filled = [(path, self._filled(given, path)) for path in self._leaves]
            module = nnx.merge(self._graph, nnx.from_flat_state(filled))
        if train is not None:
            module.train() if train else module.eval()
        _seed_streams(module, rngs or {})
        return module

    def _check_arrays(self, path: tuple[Any, ...], module: Any) -> None:
        # Those that NNX knows are shapes here; others it takes for constants of the trace.
        for name, value in vars(module).items():
            if isinstance(value, jax.Array):
                where = ".".join((self.name, *_names(path), name))
                raise ConfigError(
                    f"model.model_class: found the array {where}, expected a variable "
                    "(nnx.Variable, nnx.Param), nnx.data(array) or a NumPy array: NNX does not see "
                    f"it where the module is built by a compiled function. Wrap it: "
                    f"self.{name} = nnx.data(...)."
                )

    def _filled(self, variables: Mapping[str, Any], path: tuple[Any, ...]) -> Any:
        leaf = self._leaves[path]
        if isinstance(leaf, nnx.RngKey):  # until the streams are seeded
            return leaf.replace(jnp.broadcast_to(jax.random.key(0), leaf.shape))
        if isinstance(leaf, nnx.RngCount):
            return leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))
        collection = _collection(leaf)
        value: Any = variables.get(collection)
        for name in _names(path):
            if not isinstance(value, Mapping) or name not in value:
                raise LossError(
                    f"{self.name} has {'/'.join((collection, *_names(path)))!r}: found the "
                    f"collections {sorted(variables)} without it, expected all that init has "
                    "returned. Outside of a loss pass {'params': state.params, "
                    "**state.mutable_variables}."
                )
            value = value[name]
        return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value

    def _variables(self, module: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
        """Returns what a module holds by collection; what it did not hold at first is left out."""
        flat = {}
        for path, leaf in nnx.to_flat_state(nnx.state(module)):
            if path in self._leaves and not isinstance(leaf, nnx.RngState):
                flat[(_collection(leaf), *_names(path))] = read(leaf)
        return unflatten_dict(flat)


def _captured(call: Callable[[Any], Any], module: Any) -> tuple[Any, Any]:
    """Returns what a call of a module returns, and what the module sows in it."""
    if hasattr(nnx, "capture"):  # also where nobody asks: NNX warns of what is sown outside of it
        return nnx.capture(call, nnx.Intermediate)(module)
    outputs = call(module)  # before Flax 0.12.6 it is kept in the module
    return outputs, nnx.state(module, nnx.Intermediate)


def is_nnx_class(model_class: Any) -> bool:
    """Says whether a class is one of NNX modules; NNX is not imported for it."""
    loaded = sys.modules.get("flax.nnx")  # where it is not, no class can be
    if loaded is None or not inspect.isclass(model_class):
        return False
    return issubclass(model_class, loaded.Module)


def check_is_model(model: Any) -> None:
    """Raises for an NNX module in the place of a model.

    Raises:
        ConfigError: It holds its arrays, and cannot be handed those of a state.
    """
    if is_nnx_class(type(model)):
        name = type(model).__name__
        raise ConfigError(
            f"model.model_class: found a function that returns an NNX module {name}, expected its "
            f"class, or a function that returns an xtrainer.NNXModel. Give model_class={name} with "
            "its arguments but rngs in model_config."
        )


def model_name(model: Any) -> str:
    """Returns the name of a model's class, that of the module for an NNX one."""
    return model.name if isinstance(model, NNXModel) else type(model).__name__


def _seed_streams(module: Any, rngs: Mapping[str, PRNGKey]) -> None:
    """Seeds the random streams that a module holds; those without a key are made to say so."""
    streams = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream)]
    keys = {}
    for tag in {stream.key.tag for stream in streams}:
        if tag in rngs:
            keys[tag] = rngs[tag]
        elif "default" in rngs:  # another key for each, as two streams are to differ
            keys[tag] = jax.random.fold_in(rngs["default"], zlib.crc32(tag.encode()))
    nnx.reseed(module, policy="match_shape", **keys)
    for stream in streams:
        if stream.key.tag not in keys:
            stream.__class__ = _unfed_class()


@functools.cache
def _unfed_class() -> Any:
    class Unfed(nnx.RngStream):
        """A stream without a key: whoever draws from it would always draw the same."""

        def __call__(self) -> PRNGKey:
            tag = self.key.tag
            raise LossError(
                f"The model draws from its random stream {tag!r}, and was given no key for it. "
                f"Pass one: apply_fn(variables, x, train=train, rngs={{{tag!r}: rng}})."
            )

    return Unfed


def _takes(function: Callable[..., Any], name: str) -> bool:
    if inspect.isclass(function):  # the signature of an NNX class is that of its metaclass
        function = function.__init__
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a builtin
        return False


def _names(path: tuple[Any, ...]) -> _Path:
    return tuple(map(str, path))  # those of lists are numbers


def _collection(leaf: Any) -> str:
    if not isinstance(leaf, nnx.Variable):
        return "arrays"
    if isinstance(leaf, nnx.Param):
        return "params"
    return nnx.variable_name_from_type(type(leaf), allow_register=True)


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _boxed(leaf: Any) -> PyTree:
    value = _value(leaf)
    metadata = leaf.get_metadata() if isinstance(leaf, nnx.Param) else {}
    names = next((metadata[key] for key in _NAMES if metadata.get(key)), None)
    return value if names is None else nn.Partitioned(value, tuple(names))

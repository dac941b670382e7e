"""How do a model, an optimizer and a mesh become a state?"""

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from xtrainer.counts import MAX_SEED, wanted_count
from xtrainer.errors import ConfigError, readable
from xtrainer.launch import is_main_process
from xtrainer.parallel import (
    ModuleName,
    ParallelConfig,
    ParamLayout,
    build_mesh,
    check_mesh,
    check_remat,
    lay_out,
    read_annotations,
    record_modules,
    state_shardings,
    unbox,
)
from xtrainer.registry import models
from xtrainer.state import GuardState, TrainState
from xtrainer.step import PrecisionConfig, cast_floating
from xtrainer.trainer.config import ModelConfig
from xtrainer.trainer.nnx_model import NNXModel, check_is_model, is_nnx_class
from xtrainer.trainer.tried import check_model, check_model_class, refused_arguments, trying
from xtrainer.tree import num_elements
from xtrainer.types import PRNGKey, PyTree

_LOG = logging.getLogger(__name__)

_SMALL = 2**24
"""Numbers of parameters that are drawn quickly enough by a program that was compiled cheaply."""
_CHEAPLY: dict[str, Any] = {"xla_backend_optimization_level": 1}
"""For a program that runs once: half the time to compile, for numbers that are drawn slower."""

InitFn = Callable[[PyTree, PRNGKey], Mapping[str, Any]]


def build_model(config: ModelConfig, default_class: Any = None) -> Any:
    """Returns the model that a config describes; one of NNX as an :class:`NNXModel`.

    Args:
        config: Class and arguments.
        default_class: The class where the config names none.

    Raises:
        ConfigError: If there is no class, no such name, or the class refuses its arguments; for a
            function that returns an NNX module.
    """
    model_class = default_class if config.model_class is None else config.model_class
    if model_class is None:
        raise ConfigError(
            "model.model_class: found None, and the trainer has no class attribute model_class. "
            "Give ModelConfig a class or a registered name."
        )
    if isinstance(model_class, str):
        model_class = models.get(model_class)
    check_model_class(model_class)
    arguments = config.model_config
    make = functools.partial(NNXModel, model_class) if is_nnx_class(model_class) else model_class
    try:
        if arguments is None:
            model = make()
        else:
            model = make(**arguments) if isinstance(arguments, Mapping) else make(arguments)
    except TypeError as error:
        raise refused_arguments(model_class, arguments, error) from error
    check_is_model(model)
    return model


def init_variables(model: Any, inputs: PyTree, rngs: Mapping[str, PRNGKey]) -> Mapping[str, Any]:
    """Returns the variables of a Linen model, called with ``train=False`` where it takes that.

    Args:
        model: Has ``init`` as Flax Linen modules do.
        inputs: One input, or a tuple of positional ones.
        rngs: Keys by name.

    Raises:
        ConfigError: If it has none.
    """
    check_model(model)
    positional, named = call_arguments(model, inputs)
    return model.init(rngs, *positional, **named)


def call_arguments(model: Any, inputs: PyTree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns what a model is called with where it is not trained: by place, and by name.

    Args:
        model: ``train=False`` is among the arguments where its ``__call__`` takes it, and always
            for an :class:`NNXModel`.
        inputs: One input, or a tuple of positional ones.
    """
    positional = inputs if isinstance(inputs, tuple) else (inputs,)
    parameters = inspect.signature(type(model).__call__).parameters
    takes_train = isinstance(model, NNXModel) or "train" in parameters
    return positional, ({"train": False} if takes_train else {})


@readable
def init_state(
    init: InitFn,
    exmp_input: PyTree,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    mesh: Mesh | None = None,
    parallel: ParallelConfig | None = None,
    precision: PrecisionConfig | None = None,
) -> TrainState:
    """Returns a new state, initialized on the devices it lives on.

    Args:
        init: ``init(inputs, rng) -> variables``; ``variables["params"]`` are trained, other
            collections are carried along. Boxes of Flax are read for the layout and taken off.
        exmp_input: An input or its ``ShapeDtypeStruct``s; only shapes and dtypes are used.
        optimizer: Any Optax transformation.
        seed: Seed of initialization and training, 0 to 2**32 - 1.
        mesh: The device mesh; all devices on one data axis where None.
        parallel: How parameters spread over the mesh.
        precision: ``param_dtype`` is the dtype of floating parameters; a dynamic ``loss_scale`` is
            kept in the state.

    Raises:
        ConfigError: If the model has no parameters, or metadata, rules or names of ``parallel`` do
            not fit it; for a seed that no key can have.
        MeshError: If the mesh has an axis that ``parallel`` does not name.

    Example:
        >>> init = lambda x, rng: {"params": {"w": jnp.zeros(x.shape[-1])}}
        >>> init_state(init, jnp.ones((4, 3)), optax.sgd(0.1)).params["w"].shape
        (3,)
    """
    return begin_state(init, exmp_input, optimizer, seed, mesh, parallel, precision).result()


class BegunState:
    """A state whose program is being compiled in a thread.

    Attributes:
        shapes: Of the state, each with its sharding.
    """

    def __init__(self, lowered: jax.stages.Lowered, shapes: TrainState) -> None:
        self.shapes = shapes
        self._program: Future[jax.stages.Compiled] = Future()
        options = _CHEAPLY if _is_small_on_cpu(shapes) else None

        def work() -> None:
            try:
                self._program.set_result(lowered.compile(compiler_options=options))
            except BaseException as error:  # raised where the state is asked for
                self._program.set_exception(error)

        threading.Thread(target=work, name="compile-init").start()

    def result(self) -> TrainState:
        """Returns the state; waits for it."""
        return self._program.result()()


def _is_small_on_cpu(shapes: TrainState) -> bool:
    devices = jax.tree.leaves(shapes)[0].sharding.device_set
    on_cpu = all(device.platform == "cpu" for device in devices)
    return on_cpu and num_elements(shapes.params) <= _SMALL


def begin_state(
    init: InitFn,
    exmp_input: PyTree,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    mesh: Mesh | None = None,
    parallel: ParallelConfig | None = None,
    precision: PrecisionConfig | None = None,
) -> BegunState:
    """Begins to do what :func:`init_state` does; the caller can meanwhile trace other functions.

    Arguments and errors are those of :func:`init_state`.
    """
    state = _describe_state(init, exmp_input, optimizer, seed, mesh, parallel, precision)
    if is_main_process():
        for line in state.unused:
            _LOG.warning("%s", line)
    shardings = jax.tree.map(lambda x: x.sharding, state.shapes)
    return BegunState(jax.jit(state.create, out_shardings=shardings).lower(), state.shapes)


def abstract_state(
    init: InitFn,
    exmp_input: PyTree,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    mesh: Mesh | None = None,
    parallel: ParallelConfig | None = None,
    precision: PrecisionConfig | None = None,
) -> TrainState:
    """Returns the shapes of what :func:`init_state` would return, each with its sharding.

    Nothing is computed, and the devices of the mesh need not exist: a state of any size can be
    looked at, and a step be lowered and compiled for it. Arguments and errors are those of
    :func:`init_state`.

    Example:
        >>> init = lambda x, rng: {"params": {"w": jnp.zeros((1 << 20, x.shape[-1]))}}
        >>> abstract_state(init, jnp.ones((4, 1 << 20)), optax.sgd(0.1)).params["w"].shape
        (1048576, 1048576)
    """
    return _describe_state(init, exmp_input, optimizer, seed, mesh, parallel, precision).shapes


class _StateDescription(NamedTuple):
    """How a state is made, its shapes with their shardings, and the rules that did nothing."""

    create: Callable[[], TrainState]
    shapes: TrainState
    unused: tuple[str, ...]


def _describe_state(
    init: InitFn,
    exmp_input: PyTree,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh | None,
    parallel: ParallelConfig | None,
    precision: PrecisionConfig | None,
) -> _StateDescription:
    if wanted_count(seed, 0, MAX_SEED):
        raise ConfigError(f"seed: found {seed!r}, expected 0 <= seed < 2**32.")
    parallel = parallel or ParallelConfig()
    mesh = build_mesh(parallel) if mesh is None else mesh
    check_mesh(mesh, parallel)
    precision = precision or PrecisionConfig()

    def complete(variables: Mapping[str, Any], rng: PRNGKey) -> TrainState:
        rest = dict(flax.core.unfreeze(unbox(variables)))
        params = cast_floating(rest.pop("params"), precision.param_dtype)
        rest.pop("intermediates", None)
        guard = GuardState.create(precision.first_exponent)
        return TrainState.create(params, optimizer, rng, rest, guard)

    def create() -> TrainState:
        init_rng, train_rng = jax.random.split(jax.random.key(seed))
        return complete(_run_init(init, exmp_input, init_rng), train_rng)

    boxed, modules = _describe(init, exmp_input)
    check_remat(parallel.remat, modules)
    annotations = read_annotations(boxed["params"])
    state = jax.eval_shape(complete, boxed, jax.random.key(seed))
    shardings = state_shardings(state, mesh, parallel, annotations)
    shapes = jax.tree.map(lambda x, where: x.update(sharding=where), state, shardings)
    return _StateDescription(
        create, shapes, lay_out(state.params, mesh, parallel, annotations).unused
    )


def model_layout(
    init: InitFn, exmp_input: PyTree, mesh: Mesh, parallel: ParallelConfig
) -> ParamLayout:
    """Returns how a model's parameters are laid out, why, and which rules laid out nothing.

    Nothing is computed.

    Args:
        init: As for :func:`init_state`.
        exmp_input: An input or its ``ShapeDtypeStruct``s.
        mesh: The device mesh.
        parallel: The rules.

    Raises:
        ConfigError: For metadata and rules that do not fit, and for a model without parameters.
    """
    params = _describe(init, exmp_input)[0]["params"]
    return lay_out(unbox(params), mesh, parallel, read_annotations(params))


def _describe(init: InitFn, exmp_input: PyTree) -> tuple[Mapping[str, Any], Sequence[ModuleName]]:
    """Returns the shapes of a model's variables, in their boxes, and the modules it calls."""
    tried = trying("This was the model, initialized with an input of", exmp_input)
    with record_modules() as modules, tried:
        variables = jax.eval_shape(lambda rng: _run_init(init, exmp_input, rng), jax.random.key(0))
    if not jax.tree.leaves(variables.get("params")):
        raise ConfigError(
            f"The model's init gave the collections {sorted(set(variables) - {'params'})} and no "
            "parameters, expected a collection 'params'."
        )
    return variables, modules


def _run_init(init: InitFn, exmp_input: PyTree, rng: PRNGKey) -> Mapping[str, Any]:
    return init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), exmp_input), rng)

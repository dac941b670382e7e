"""How do a model, an optimizer and a mesh become a state?"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from xtrainer.errors import ConfigError
from xtrainer.parallel import ParallelConfig, build_mesh, state_shardings
from xtrainer.registry import models
from xtrainer.state import TrainState
from xtrainer.step import PrecisionConfig, cast_floating
from xtrainer.trainer.config import ModelConfig
from xtrainer.types import PRNGKey, PyTree

InitFn = Callable[[PyTree, PRNGKey], Mapping[str, Any]]


def build_model(config: ModelConfig, default_class: Any = None) -> Any:
    """Returns the model that a config describes.

    Args:
        config: Class and arguments.
        default_class: The class where the config names none.

    Raises:
        ConfigError: If there is no class, no such name, or the class refuses its arguments.
    """
    model_class = default_class if config.model_class is None else config.model_class
    if model_class is None:
        raise ConfigError(
            "model.model_class: found None, and the trainer has no class attribute model_class. "
            "Give ModelConfig a class or a registered name."
        )
    if isinstance(model_class, str):
        model_class = models.get(model_class)
    arguments = config.model_config
    try:
        if arguments is None:
            return model_class()
        return (
            model_class(**arguments) if isinstance(arguments, Mapping) else model_class(arguments)
        )
    except TypeError as error:
        name = getattr(model_class, "__name__", model_class)
        raise ConfigError(f"model.model_config: {name} refuses its arguments: {error}") from error


def init_variables(model: Any, inputs: PyTree, rngs: Mapping[str, PRNGKey]) -> Mapping[str, Any]:
    """Returns the variables of a Linen model, called with ``train=False`` where it takes that.

    Args:
        model: Has ``init`` as Flax Linen modules do.
        inputs: One input, or a tuple of positional ones.
        rngs: Keys by name.
    """
    positional = inputs if isinstance(inputs, tuple) else (inputs,)
    parameters = inspect.signature(type(model).__call__).parameters
    takes_train = "train" in parameters
    return model.init(rngs, *positional, **({"train": False} if takes_train else {}))


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
            collections are carried along.
        exmp_input: An input or its ``ShapeDtypeStruct``s; only shapes and dtypes are used.
        optimizer: Any Optax transformation.
        seed: Seed of initialization and training.
        mesh: The device mesh; all devices on one data axis where None.
        parallel: How parameters spread over the mesh.
        precision: ``param_dtype`` is the dtype of floating parameters.

    Raises:
        ConfigError: If the model has no parameters.

    Example:
        >>> init = lambda x, rng: {"params": {"w": jnp.zeros(x.shape[-1])}}
        >>> init_state(init, jnp.ones((4, 3)), optax.sgd(0.1)).params["w"].shape
        (3,)
    """
    parallel = parallel or ParallelConfig()
    mesh = build_mesh(parallel) if mesh is None else mesh
    dtype = (precision or PrecisionConfig()).param_dtype
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), exmp_input)

    def create() -> TrainState:
        init_rng, train_rng = jax.random.split(jax.random.key(seed))
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        variables = dict(flax.core.unfreeze(nn.meta.unbox(init(inputs, init_rng))))
        variables.pop("intermediates", None)
        params = cast_floating(variables.pop("params", {}), dtype)
        if not jax.tree.leaves(params):
            raise ConfigError(
                f"The model's init gave the collections {sorted(variables)} and no parameters, "
                "expected a collection 'params'."
            )
        return TrainState.create(params, optimizer, train_rng, variables)

    shardings = state_shardings(jax.eval_shape(create), mesh, parallel)
    return jax.jit(create, out_shardings=shardings)()

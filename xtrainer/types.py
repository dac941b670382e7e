"""The shared words of every room: aliases, and the protocols of what users hand in."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax

PyTree: TypeAlias = Any
"""A user's pytree; the leaves are arrays."""

BatchLike: TypeAlias = Any
"""Any pytree whose array leaves share a leading batch axis."""

HostMetrics: TypeAlias = dict[str, float]
"""Metric names to Python floats, after they have left the device."""

JSON: TypeAlias = Any
"""What ``json.dumps`` takes: dict, list, str, int, float, bool, None."""

ApplyFn: TypeAlias = Callable[..., Any]
LossOutput: TypeAlias = tuple[Any, tuple[Mapping[str, Any], Mapping[str, Any]]]
LossFunction: TypeAlias = Callable[..., LossOutput]
"""``(params, apply_fn, batch, rng, train) -> (loss, (metrics, mutable_variables))``."""

Schedule: TypeAlias = Callable[[Any], Any]
"""Optimizer step (int, from 0) to learning rate."""

MetricPostprocess: TypeAlias = Callable[[HostMetrics], HostMetrics]


@runtime_checkable
class Loader(Protocol):
    """Any iterable of batches; ``__len__`` where the number of batches is known."""

    def __iter__(self) -> Iterator[BatchLike]:
        """Begins a pass."""
        ...


@runtime_checkable
class StatefulLoader(Protocol):
    """A loader or iterator whose position can be saved (Grain's protocol)."""

    def get_state(self) -> JSON:
        """Returns the position behind the last batch that was given out."""
        ...

    def set_state(self, state: JSON) -> None:
        """Goes to a position."""
        ...


@runtime_checkable
class LinenModule(Protocol):
    """What is asked of a model: ``init`` and ``apply`` as Flax Linen has them."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the initial variables."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs."""
        ...


PRNGKey: TypeAlias = jax.Array
"""A typed key, ``jax.random.key``; shape ``()``."""

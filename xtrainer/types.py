"""The shared words of every room: aliases, and the protocols of what users hand in."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

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

PredictFunction: TypeAlias = Callable[..., PyTree]
"""``(params, apply_fn, batch, rng)`` to a pytree of arrays whose first axis is the batch."""

CountFunction: TypeAlias = Callable[..., Any]
"""``(params, apply_fn, batch, row_mask, rng)`` to integers ``(counts,)`` of rows not left out."""

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


class DataShard(NamedTuple):
    """Which part of every global batch a process reads.

    Processes whose devices hold the same rows (a tensor axis that spans processes) have one index.

    Attributes:
        index: The number of this part, from 0.
        count: Into how many parts of one size a batch is divided.
    """

    index: int = 0
    count: int = 1


@runtime_checkable
class ShardedLoader(Protocol):
    """A loader of global batches that can be told to give one part of each.

    Of a batch of ``n`` rows, and a ``batch_size`` of ``b`` that ``count`` divides, it gives the
    rows from ``index * b // count`` to ``(index + 1) * b // count`` that there are, none where the
    last batch of a pass ends before: so every process reads the same number of batches.
    """

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch from now on."""
        ...


@runtime_checkable
class ResizableLoader(Protocol):
    """A loader whose batches can become larger, one pass after the other.

    Its ``get_state`` names the size, where that is not the one it was made with, so that a run goes
    on in the midst of a pass.
    """

    @property
    def batch_size(self) -> int:
        """Rows of the batches of the pass under way, over all processes."""
        ...

    def set_batch_size(self, batch_size: int) -> None:
        """Gives batches of so many rows, over all processes, from the next pass on.

        The length stays that of the pass under way until then. What is asked for later counts, and
        ``set_state`` forgets it.

        Raises:
            LoaderError: If there can be no such batches.
        """
        ...


@runtime_checkable
class FingerprintedLoader(Protocol):
    """A loader that can tell its data from others, so that no run goes on with others unnoticed."""

    def fingerprint(self) -> str:
        """Returns a text that is the same for the same data, in every process and at every start.

        It is asked for once; a version of the data set will do.
        """
        ...


@runtime_checkable
class EvaluableLoader(Protocol):
    """A loader whose set can be evaluated while it is trained on."""

    def for_evaluation(self) -> Iterable[Any]:
        """Returns a loader of one whole pass, the same at every ``iter()``, with its own place."""
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

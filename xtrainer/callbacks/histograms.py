"""How are the values of the parameters spread? Counted on the devices, fetched late."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.errors import ConfigError, did_you_mean
from xtrainer.metrics import start_to_host, to_host
from xtrainer.tree import flatten_with_paths, matches
from xtrainer.types import HostMetrics

_MOST_PENDING = 8

Arrays = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class HistogramConfig(CallbackConfig):
    """Gives the loggers histograms of the parameters, and of what steps change in them.

    They are called ``parameters/PATH`` and ``updates/PATH``. At all other steps nothing is done.
    """

    every_n_steps: int = 500
    """Steps between histograms."""
    parameters: bool = True
    """Whether there are histograms of the parameters, after the step."""
    updates: bool = False
    """Whether there are histograms of the change of the parameters in that step; it takes a copy
    of them from the step before."""
    include: tuple[str, ...] = ()
    """Patterns of paths, see :func:`xtrainer.tree.matches`; (): all parameters."""
    bins: int = 64
    """Bins from the smallest to the largest value."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Histograms":
        """Returns the callback."""
        return Histograms(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        if not 1 <= self.bins <= 512:
            found.append(f"bins: found {self.bins}, expected a number from 1 to 512.")
        if not (self.parameters or self.updates):
            found.append("parameters: found False, expected True where updates is False.")
        if self.main_process_only:
            found.append("main_process_only: found True, expected False: all processes count.")
        return found


class Pending(NamedTuple):
    """Histograms that are being counted on the devices.

    Attributes:
        step: Of the parameters.
        bins: For each name, counts int32 ``(bins,)`` and edges float32 ``(bins + 1,)``.
    """

    step: int
    bins: dict[str, tuple[jax.Array, jax.Array]]


class Histograms(Callback):
    """See :class:`HistogramConfig`."""

    config: HistogramConfig

    def __init__(
        self, config: HistogramConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self._pending: list[Pending] = []
        self._before: tuple[int, Arrays] | None = None
        replicated = NamedSharding(trainer.mesh, PartitionSpec())
        count = functools.partial(count_all, bins=config.bins)
        self._count = jax.jit(count, out_shardings=replicated)
        self._copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))

    def on_training_start(self) -> None:
        """Makes sure that there is something to show.

        Raises:
            ConfigError: If no parameter matches the patterns.
        """
        self._pending, self._before = [], None
        paths = list(flatten_with_paths(self.trainer.state.params))
        for pattern in self.config.include:
            if not any(matches(pattern, path) for path in paths):
                raise ConfigError(
                    f"HistogramConfig.include: found {pattern!r}, which no parameter matches. "
                    f"{did_you_mean(pattern, paths)}"
                )

    def next_step(self, step: int) -> int | None:
        """Returns the next step that is shown, or the one before it where updates are."""
        every = max(self.config.every_n_steps, 1)
        following = step - step % every + every
        is_before = self.config.updates and following - 1 > step
        return following - 1 if is_before else following

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Begins to count, or keeps the parameters for the next step."""
        config, params = self.config, self._params()
        if step_idx % max(config.every_n_steps, 1) == 0:
            arrays = {f"parameters/{p}": x for p, x in params.items()} if config.parameters else {}
            if self._before is not None and self._before[0] == step_idx - 1:
                old = self._before[1]
                arrays |= {f"updates/{path}": (x, old[path]) for path, x in params.items()}
            bins = self._count(arrays) if arrays else {}
            jax.tree.map(start_to_host, bins)
            self._pending.append(Pending(step_idx, bins))
            self._before = None
            if len(self._pending) > _MOST_PENDING:  # where rows are logged more rarely
                self._give(self._pending[0].step)
        if config.updates and (step_idx + 1) % max(config.every_n_steps, 1) == 0:
            self._before = (step_idx, self._copy(params))  # the step may overwrite its state

    def _params(self) -> Arrays:
        include = self.config.include
        params = flatten_with_paths(self.trainer.state.params)
        return {
            path: x
            for path, x in params.items()
            if not include or any(matches(pattern, path) for pattern in include)
        }

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Gives the loggers what the devices have counted by now."""
        self._give(step_idx)

    def on_rollback(self, step_idx: int) -> None:
        """Forgets steps that are taken back."""
        self._pending = [one for one in self._pending if one.step <= step_idx]
        self._before = None

    def on_training_end(self) -> None:
        """Gives the loggers what is left."""
        self._give(None)

    def state_dict(self) -> dict[str, Any]:
        """Keeps nothing; what was counted before a checkpoint is given to the loggers first."""
        if self._pending:
            self._give(None)
            self.trainer.logger.flush()
        return {}

    def finalize(self, status: str) -> None:
        """Gives the loggers what is left, also after an error."""
        self._give(None)

    def _give(self, last: int | None) -> None:
        """Gives on the histograms of the steps up to one; None: of all."""
        while self._pending and (last is None or self._pending[0].step <= last):
            step, bins = self._pending.pop(0)
            for name, (counts, edges) in bins.items():
                self.trainer.logger.log_histogram(name, to_host(counts), to_host(edges), step)


def count_all(arrays: dict[str, Any], bins: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns the histogram of every array, for ``jit``.

    Args:
        arrays: By name; two arrays stand for their difference.
        bins: Of each histogram.
    """
    return {
        name: count_values(x[0] - x[1] if isinstance(x, tuple) else x, bins)
        for name, x in arrays.items()
    }


def count_values(x: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]:
    """Returns counts int32 ``(bins,)`` and edges float32 ``(bins + 1,)``, as NumPy would.

    Values that are not finite are left out. Of complex numbers the absolute values are counted.
    Sharded arrays stay where they are: only the counts of their parts are added up.

    Example:
        >>> counts, edges = count_values(jnp.array([0.0, 0.25, 1.0]), bins=2)
        >>> counts.tolist(), edges.tolist()
        ([2, 1], [0.0, 0.5, 1.0])
    """
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    values = x.astype(jnp.float32)
    finite = jnp.isfinite(values)
    low = jnp.min(values, initial=jnp.inf, where=finite)
    high = jnp.max(values, initial=-jnp.inf, where=finite)
    low, high = jnp.where(low > high, 0.0, low), jnp.where(low > high, 0.0, high)
    is_point = low == high
    low, high = jnp.where(is_point, low - 0.5, low), jnp.where(is_point, high + 0.5, high)
    share = jnp.arange(bins + 1, dtype=jnp.float32) / bins
    edges = (low * (1 - share) + high * share).at[-1].set(high)

    def below(edge: jax.Array) -> jax.Array:
        return jnp.sum(finite & (values < edge), dtype=jnp.int32)

    # A bin is what lies below one edge and not below the one before; the last one has its edge.
    ends = jax.lax.map(below, edges[1:-1]) if bins > 1 else jnp.zeros((0,), jnp.int32)
    total = jnp.sum(finite, dtype=jnp.int32)
    return jnp.diff(jnp.concatenate([jnp.zeros((1,), jnp.int32), ends, total[None]])), edges

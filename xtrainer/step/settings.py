"""What does a step do besides the loss? The settings of the pure step functions."""

import functools
from dataclasses import dataclass, field

import jax

from xtrainer.counts import MAX_SEED, wanted_count
from xtrainer.errors import StepError
from xtrainer.optim import RegularizationConfig
from xtrainer.parallel import BatchLayout
from xtrainer.step.precision import PrecisionConfig
from xtrainer.types import PyTree


@dataclass(frozen=True)
class StepSettings:
    """Settings of :func:`make_train_step` and :func:`make_eval_step`.

    Attributes:
        accumulate_steps: Micro-batches per update.
        accumulate_scan: Scan over the micro-batches; otherwise a loop unrolled while tracing.
        precision: Dtypes of parameters and computation.
        nonfinite_limit: Refused steps in a row after which every later step is refused as well, so
            that the state stays as it was; None: no limit.
        train_log_modes: What is logged of a training metric that does not say so itself.
        intermediates_log_modes: The same for what the model sows.
        log_intermediates: Turn the collection ``intermediates`` into metrics.
        log_grad_norm: Add the metric ``grad_norm``.
        log_grad_norm_per_param: Add ``grad_norm/PATH`` for each parameter.
        log_param_norm: Add the metric ``param_norm``.
        log_param_norm_per_param: Add ``param_norm/PATH`` for each parameter.
        seed_eval: Seed of the random numbers of evaluation.
        layout: Mesh and batch axes for constraints on activations; None: one device.
        param_shardings: Sharding of each parameter, kept by the gradient sums; None: none.
        opt_state_shardings: Sharding of each leaf of the optimizer's state between steps, where
            some lie in the memory of the hosts; None: all stay on the devices.
        remat: Modules whose activations are computed again, see ``ParallelConfig.remat``.
        remat_policy: What they keep, see ``ParallelConfig.remat_policy``.
        freeze: Patterns of the parameters for which no gradient is computed; it counts as 0.
        regularization: What is added to the mean loss; None: nothing.

    Raises:
        StepError: If a number is not whole, or none that can be counted.
    """

    accumulate_steps: int = 1
    accumulate_scan: bool = True
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    nonfinite_limit: int | None = 1
    train_log_modes: tuple[str, ...] = ("mean",)
    intermediates_log_modes: tuple[str, ...] = ("mean",)
    log_intermediates: bool = False
    log_grad_norm: bool = True
    log_grad_norm_per_param: bool = False
    log_param_norm: bool = True
    log_param_norm_per_param: bool = False
    seed_eval: int = 0
    layout: BatchLayout | None = None
    param_shardings: PyTree | None = None
    opt_state_shardings: PyTree | None = None
    remat: tuple[str, ...] = ()
    remat_policy: str = "nothing_saveable"
    freeze: tuple[str, ...] = ()
    regularization: RegularizationConfig | None = None

    def __post_init__(self) -> None:
        limit = 1 if self.nonfinite_limit is None else self.nonfinite_limit
        checked = {
            "accumulate_steps": (self.accumulate_steps, wanted_count(self.accumulate_steps, 1)),
            "nonfinite_limit": (limit, wanted_count(limit, 1)),
            "seed_eval": (self.seed_eval, wanted_count(self.seed_eval, 0, MAX_SEED)),
        }
        wrong = [f"{n}: found {v!r}, expected {w}." for n, (v, w) in checked.items() if w]
        if wrong:
            raise StepError(" ".join(wrong))

    @functools.cached_property
    def in_line(self) -> bool:
        """Whether small kernels are computed one after the other, see ``xtrainer.step.order``."""
        shardings = jax.tree.leaves(self.param_shardings)
        whole = bool(shardings) and all(sharding.is_fully_replicated for sharding in shardings)
        if self.layout is None or not whole:
            return False  # a number of an array that is spread would have to be sent
        return all(device.platform == "cpu" for device in self.layout.mesh.devices.flat)

"""How do the parameters move? Learning-rate schedules and optimizers, from typed configs.

Synopsis:
    config = OptimizerConfig(name="adamw", scheduler=SchedulerConfig(lr=3e-4), weight_decay=0.1)
    transform, schedule = build_optimizer(config)
    opt_state = transform.init(params)          # opt_state["optimizer"].mu holds the moments
    build_schedule(config.scheduler)(step)      # the learning rate of update number ``step``
"""

from xtrainer.optim.build import (
    BuiltOptimizer,
    OptimizerConfig,
    build_optimizer,
    decayed_params,
    frozen_patterns,
    regularization_of,
)
from xtrainer.optim.ema import (
    AverageState,
    averaged_params,
    forget_average,
    has_average,
    with_average,
)
from xtrainer.optim.groups import REST, ParamGroupConfig, label_params
from xtrainer.optim.masks import path_mask, unmatched_patterns
from xtrainer.optim.rate import build_schedules
from xtrainer.optim.regularization import RegularizationConfig, regularization_fn
from xtrainer.optim.scale import is_scalable, scalable, set_update_scale
from xtrainer.optim.schedules import SchedulerConfig, build_schedule
from xtrainer.optim.turns import TurnsState, in_turns, takes_turns

__all__ = [
    "AverageState",
    "BuiltOptimizer",
    "OptimizerConfig",
    "ParamGroupConfig",
    "REST",
    "RegularizationConfig",
    "SchedulerConfig",
    "TurnsState",
    "averaged_params",
    "build_optimizer",
    "build_schedule",
    "build_schedules",
    "decayed_params",
    "forget_average",
    "frozen_patterns",
    "has_average",
    "label_params",
    "in_turns",
    "is_scalable",
    "path_mask",
    "regularization_fn",
    "regularization_of",
    "scalable",
    "set_update_scale",
    "takes_turns",
    "unmatched_patterns",
    "with_average",
]

"""What is one step? Pure functions from (state, batch) to (state, metrics).

Synopsis:
    step = make_train_step(loss_function, model.apply, optimizer, StepSettings(accumulate_steps=4))
    state, metrics, report = jax.jit(step, donate_argnums=0)(state, batch)
"""

from xtrainer.step.apply import BoundApply
from xtrainer.step.compile import EvalExecutor, TrainExecutor
from xtrainer.step.count import make_count_step
from xtrainer.step.diagnose import Finding, find_nonfinite
from xtrainer.step.evaluate import make_eval_step
from xtrainer.step.executor import PlacedBatch
from xtrainer.step.flat import Flat, whole
from xtrainer.step.flops import count_flops
from xtrainer.step.guard import StepReport
from xtrainer.step.loss import LossTerms, describe_loss
from xtrainer.step.places import Place
from xtrainer.step.precision import PrecisionConfig, cast_floating
from xtrainer.step.predict import PredictExecutor, make_predict_step
from xtrainer.step.reenact import StepDiagnosis, diagnose_step, make_norms_fn
from xtrainer.step.settings import StepSettings
from xtrainer.step.signals import FAIL, LAST, STOP
from xtrainer.step.train import make_train_step, train_layout
from xtrainer.step.turns import make_turns_step

__all__ = [
    "FAIL",
    "LAST",
    "STOP",
    "BoundApply",
    "EvalExecutor",
    "Finding",
    "Flat",
    "LossTerms",
    "Place",
    "PlacedBatch",
    "PrecisionConfig",
    "PredictExecutor",
    "StepDiagnosis",
    "StepReport",
    "StepSettings",
    "TrainExecutor",
    "cast_floating",
    "count_flops",
    "describe_loss",
    "diagnose_step",
    "find_nonfinite",
    "make_count_step",
    "make_eval_step",
    "make_norms_fn",
    "make_predict_step",
    "make_train_step",
    "make_turns_step",
    "train_layout",
    "whole",
]

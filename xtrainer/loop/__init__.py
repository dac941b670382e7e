"""When does what happen? The training loop, evaluation, and how a run ends.

Synopsis:
    plan = make_plan(config, train_length=None, num_train_steps=100, steps_per_epoch=10)
    results = run_training(trainer, loaders, plan)
"""

from xtrainer.loop.agenda import Agenda, every
from xtrainer.loop.always import failed_after
from xtrainer.loop.evaluate import evaluate_loader, run_evaluation
from xtrainer.loop.feed import no_batch
from xtrainer.loop.ledger import Ledger
from xtrainer.loop.plan import Plan, make_plan
from xtrainer.loop.predict import predict_loader
from xtrainer.loop.setback import Setback
from xtrainer.loop.stop import StopReason
from xtrainer.loop.together import agree_on_end, agree_on_first_batch
from xtrainer.loop.train import Loaders, run_training
from xtrainer.loop.unit import TrainingUnit
from xtrainer.loop.view import Diary, LoopTrainer, OpenRows, RowKeeper, StepHook, Watcher
from xtrainer.loop.watchdog import Limits, Watchdog

__all__ = [
    "Agenda",
    "Diary",
    "Ledger",
    "Limits",
    "LoopTrainer",
    "Loaders",
    "OpenRows",
    "Plan",
    "RowKeeper",
    "Setback",
    "StepHook",
    "StopReason",
    "TrainingUnit",
    "Watchdog",
    "Watcher",
    "agree_on_end",
    "agree_on_first_batch",
    "evaluate_loader",
    "every",
    "failed_after",
    "make_plan",
    "no_batch",
    "predict_loader",
    "run_evaluation",
    "run_training",
]

"""What fits, and what is best? Known before a run, or found by trying.

Synopsis:
    with shapes_only():
        trainer = make_trainer(config)
    plan = plan_run(trainer, num_train_steps=1000)
    plan.train.memory.total, plan.problems

    table = trainer.tune_batch_size(loader)  # by trials on the devices
    print(table, table.best.rows)

    curve = find_learning_rate(trainer, loader)  # a short course with a rising rate
    print(curve.suggestion), curve.plot("rates.png")

    def objective(trial, folder):                 # a study with Optuna, in any number of programs
        suggest(trial, {"optimizer.scheduler.lr": Float(1e-4, 1.0, log=True)}, config)
        ...
    study = run_study(objective, "runs/study", num_trials=50)
"""

from xtrainer.trainer.batch_size import BatchSizeTable, BatchTrial
from xtrainer.tuning.learning_rate import LearningRateCurve, find_learning_rate
from xtrainer.tuning.memory import StepMemory, measure_memory
from xtrainer.tuning.optuna import TrialInterruptedError, TrialWatch, run_study, watch_trial
from xtrainer.tuning.plan import RunPlan, StepPlan, plan_run
from xtrainer.tuning.space import Choice, Float, Int, suggest

__all__ = [
    "BatchSizeTable",
    "BatchTrial",
    "Choice",
    "Float",
    "Int",
    "LearningRateCurve",
    "RunPlan",
    "StepMemory",
    "StepPlan",
    "TrialInterruptedError",
    "TrialWatch",
    "find_learning_rate",
    "measure_memory",
    "plan_run",
    "run_study",
    "suggest",
    "watch_trial",
]

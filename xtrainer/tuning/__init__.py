"""What fits? What a run will need of each device and of the disk, before anything is run.

Synopsis:
    with shapes_only():
        trainer = make_trainer(config)
    plan = plan_run(trainer, num_train_steps=1000)
    plan.train.memory.total, plan.problems

    table = trainer.tune_batch_size(loader)  # by trials on the devices
    print(table, table.best.rows)

    curve = find_learning_rate(trainer, loader)  # a short course with a rising rate
    print(curve.suggestion), curve.plot("rates.png")
"""

from xtrainer.trainer.batch_size import BatchSizeTable, BatchTrial
from xtrainer.tuning.learning_rate import LearningRateCurve, find_learning_rate
from xtrainer.tuning.memory import StepMemory, measure_memory
from xtrainer.tuning.plan import RunPlan, StepPlan, plan_run

__all__ = [
    "BatchSizeTable",
    "BatchTrial",
    "LearningRateCurve",
    "RunPlan",
    "StepMemory",
    "StepPlan",
    "find_learning_rate",
    "measure_memory",
    "plan_run",
]

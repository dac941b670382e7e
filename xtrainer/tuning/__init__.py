"""What fits? What a run will need of each device and of the disk, before anything is run.

Synopsis:
    with shapes_only():
        trainer = make_trainer(config)
    plan = plan_run(trainer, num_train_steps=1000)
    plan.train.memory.total, plan.problems
"""

from xtrainer.tuning.memory import StepMemory, measure_memory
from xtrainer.tuning.plan import RunPlan, StepPlan, plan_run

__all__ = ["RunPlan", "StepMemory", "StepPlan", "measure_memory", "plan_run"]

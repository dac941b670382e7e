"""xtrainer: a trainer for Flax models that is sharded, compiled, guarded, and resumes exactly.

Synopsis:
    import xtrainer as xt

    class Classifier(xt.TrainerModule):
        def loss_function(self, params, apply_fn, batch, rng, train=True): ...

    model = xt.ModelConfig(model_class=Net)
    trainer = Classifier(xt.TrainerConfig(), model, xt.OptimizerConfig(), batch)
    trainer.train_model(train_loader, val_loader, num_epochs=3)
"""

from etils import epy

# Each name is imported when it is used first, so that `import xtrainer` takes no time of its own.
with epy.lazy_api_imports(globals()):
    from xtrainer.callbacks import (
        Callback,
        CallbackConfig,
        EarlyStopping,
        EarlyStoppingConfig,
        ExtendedEvaluation,
        ExtendedEvaluationConfig,
        JaxProfilerConfig,
        LearningRateMonitorConfig,
        ModelCheckpointConfig,
        ProgressBarConfig,
        ThroughputConfig,
    )
    from xtrainer.config import Config, check_configs, parse_config
    from xtrainer.data import ArrayLoader, Batch, GrainLoader, prefetch
    from xtrainer.errors import ConfigError, XTrainerError
    from xtrainer.launch import initialize, is_main_process
    from xtrainer.loggers import (
        FileLoggerConfig,
        LoggerConfig,
        LoggerTool,
        LoggerToolConfig,
        MLflowLoggerConfig,
        TensorBoardLoggerConfig,
        WandBLoggerConfig,
        read_metrics,
    )
    from xtrainer.loop import StopReason
    from xtrainer.optim import (
        OptimizerConfig,
        RegularizationConfig,
        SchedulerConfig,
        build_optimizer,
        build_schedule,
    )
    from xtrainer.parallel import ParallelConfig, PipelinedStack, build_mesh, constrain_batch
    from xtrainer.registry import register_model
    from xtrainer.state import Progress, TrainState
    from xtrainer.step import PrecisionConfig, StepSettings, make_eval_step, make_train_step
    from xtrainer.trainer import (
        ModelConfig,
        PretrainedMap,
        TrainerConfig,
        TrainerModule,
        init_state,
    )

__all__ = [
    "ArrayLoader",
    "Batch",
    "Callback",
    "CallbackConfig",
    "Config",
    "ConfigError",
    "EarlyStopping",
    "EarlyStoppingConfig",
    "ExtendedEvaluation",
    "ExtendedEvaluationConfig",
    "FileLoggerConfig",
    "GrainLoader",
    "JaxProfilerConfig",
    "LearningRateMonitorConfig",
    "LoggerConfig",
    "LoggerTool",
    "LoggerToolConfig",
    "MLflowLoggerConfig",
    "ModelCheckpointConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PipelinedStack",
    "PrecisionConfig",
    "PretrainedMap",
    "Progress",
    "ProgressBarConfig",
    "RegularizationConfig",
    "SchedulerConfig",
    "StepSettings",
    "StopReason",
    "ThroughputConfig",
    "TensorBoardLoggerConfig",
    "TrainState",
    "TrainerConfig",
    "TrainerModule",
    "WandBLoggerConfig",
    "XTrainerError",
    "build_mesh",
    "build_optimizer",
    "build_schedule",
    "check_configs",
    "constrain_batch",
    "init_state",
    "initialize",
    "is_main_process",
    "make_eval_step",
    "make_train_step",
    "parse_config",
    "prefetch",
    "read_metrics",
    "register_model",
]

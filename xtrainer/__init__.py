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
        BatchSizeGrowthConfig,
        Callback,
        CallbackConfig,
        ConfusionMatrixConfig,
        EarlyStopping,
        EarlyStoppingConfig,
        EMAConfig,
        ExtendedEvaluation,
        ExtendedEvaluationConfig,
        HistogramConfig,
        JaxProfilerConfig,
        LearningRateMonitorConfig,
        MetricsTableConfig,
        ModelCheckpointConfig,
        Plugin,
        PluginConfig,
        ProgressBarConfig,
        ReduceLROnPlateauConfig,
        ThroughputConfig,
    )
    from xtrainer.checkpoint import find_last_checkpoint
    from xtrainer.config import Config, check_configs, parse_config
    from xtrainer.data import ArrayLoader, Batch, DataModule, GrainLoader, Phase, prefetch
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
    from xtrainer.loop import StopReason, TrainingUnit
    from xtrainer.optim import (
        OptimizerConfig,
        ParamGroupConfig,
        RegularizationConfig,
        SchedulerConfig,
        build_optimizer,
        build_schedule,
    )
    from xtrainer.parallel import ParallelConfig, PipelinedStack, build_mesh, constrain_batch
    from xtrainer.registry import (
        import_folder,
        register_model,
        register_optimizer,
        register_schedule,
        safe_types,
    )
    from xtrainer.state import Progress, TrainState
    from xtrainer.step import (
        PrecisionConfig,
        StepSettings,
        make_eval_step,
        make_predict_step,
        make_train_step,
        make_turns_step,
    )
    from xtrainer.trainer import (
        ModelConfig,
        NNXModel,
        PretrainedMap,
        TrainerConfig,
        TrainerModule,
        init_state,
    )

__all__ = [
    "ArrayLoader",
    "Batch",
    "BatchSizeGrowthConfig",
    "Callback",
    "CallbackConfig",
    "Config",
    "ConfigError",
    "ConfusionMatrixConfig",
    "EMAConfig",
    "DataModule",
    "EarlyStopping",
    "EarlyStoppingConfig",
    "ExtendedEvaluation",
    "ExtendedEvaluationConfig",
    "FileLoggerConfig",
    "GrainLoader",
    "HistogramConfig",
    "JaxProfilerConfig",
    "LearningRateMonitorConfig",
    "LoggerConfig",
    "LoggerTool",
    "LoggerToolConfig",
    "MLflowLoggerConfig",
    "MetricsTableConfig",
    "ModelCheckpointConfig",
    "ModelConfig",
    "NNXModel",
    "OptimizerConfig",
    "ParallelConfig",
    "ParamGroupConfig",
    "PipelinedStack",
    "Plugin",
    "PluginConfig",
    "PrecisionConfig",
    "Phase",
    "PretrainedMap",
    "Progress",
    "ProgressBarConfig",
    "ReduceLROnPlateauConfig",
    "RegularizationConfig",
    "SchedulerConfig",
    "StepSettings",
    "StopReason",
    "ThroughputConfig",
    "TensorBoardLoggerConfig",
    "TrainState",
    "TrainerConfig",
    "TrainerModule",
    "TrainingUnit",
    "WandBLoggerConfig",
    "XTrainerError",
    "build_mesh",
    "build_optimizer",
    "build_schedule",
    "check_configs",
    "constrain_batch",
    "find_last_checkpoint",
    "import_folder",
    "init_state",
    "initialize",
    "is_main_process",
    "make_eval_step",
    "make_predict_step",
    "make_train_step",
    "make_turns_step",
    "parse_config",
    "prefetch",
    "read_metrics",
    "register_model",
    "register_optimizer",
    "register_schedule",
    "safe_types",
]

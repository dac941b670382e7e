"""Who is told? Metrics, texts and the config go to the console, files, TensorBoard, W&B and MLflow.

Synopsis:
    config = LoggerConfig(log_path="runs/a", log_tools=[FileLoggerConfig(), WandBLoggerConfig()])
    logger = build_loggers(config, is_main=True, process_index=0)   # writes nothing yet
    logger.log_config(config.to_dict())                             # the first row opens all tools
    logger.log_metrics({"loss_mean": 2.3}, step=50, mode="train", epoch=1)
    logger.finalize("completed")

A tool of your own is a ``LoggerToolConfig`` whose ``create(folder)`` returns a ``LoggerTool``.
"""

from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, MultiLogger, NullLogger
from xtrainer.loggers.build import LoggerConfig, build_loggers, prepare_run_folder, run_folder
from xtrainer.loggers.file import FileLoggerConfig, read_metrics
from xtrainer.loggers.mlflow import MLflowLoggerConfig
from xtrainer.loggers.tensorboard import TensorBoardLoggerConfig
from xtrainer.loggers.wandb import WandBLoggerConfig

__all__ = [
    "FileLoggerConfig",
    "LoggerConfig",
    "LoggerTool",
    "LoggerToolConfig",
    "MLflowLoggerConfig",
    "MultiLogger",
    "NullLogger",
    "TensorBoardLoggerConfig",
    "WandBLoggerConfig",
    "build_loggers",
    "prepare_run_folder",
    "read_metrics",
    "run_folder",
]

"""What else happens during a run? Small parts that hook into its moments.

Synopsis:
    TrainerConfig(callbacks=[ModelCheckpointConfig(monitor="loss"), LearningRateMonitorConfig()])
"""

from xtrainer.callbacks.base import Callback, CallbackConfig, build_callbacks
from xtrainer.callbacks.batch_growth import BatchSizeGrowth, BatchSizeGrowthConfig
from xtrainer.callbacks.checkpoint import ModelCheckpoint, ModelCheckpointConfig
from xtrainer.callbacks.confusion import ConfusionMatrix, ConfusionMatrixConfig, draw_matrix
from xtrainer.callbacks.early_stopping import EarlyStopping, EarlyStoppingConfig
from xtrainer.callbacks.ema import EMA, EMAConfig
from xtrainer.callbacks.extended_evaluation import ExtendedEvaluation, ExtendedEvaluationConfig
from xtrainer.callbacks.histograms import HistogramConfig, Histograms
from xtrainer.callbacks.lr_monitor import LearningRateMonitor, LearningRateMonitorConfig
from xtrainer.callbacks.lr_plateau import ReduceLROnPlateau, ReduceLROnPlateauConfig
from xtrainer.callbacks.metrics_table import MetricsTable, MetricsTableConfig
from xtrainer.callbacks.monitor import Monitoring, MonitoringConfig
from xtrainer.callbacks.plugin import Plugin, PluginConfig
from xtrainer.callbacks.profiler import JaxProfiler, JaxProfilerConfig
from xtrainer.callbacks.progress_bar import ProgressBar, ProgressBarConfig
from xtrainer.callbacks.throughput import Throughput, ThroughputConfig
from xtrainer.callbacks.view import CallbackTrainer

__all__ = [
    "BatchSizeGrowth",
    "BatchSizeGrowthConfig",
    "Callback",
    "CallbackConfig",
    "CallbackTrainer",
    "ConfusionMatrix",
    "ConfusionMatrixConfig",
    "EMA",
    "EMAConfig",
    "EarlyStopping",
    "EarlyStoppingConfig",
    "ExtendedEvaluation",
    "ExtendedEvaluationConfig",
    "HistogramConfig",
    "Histograms",
    "JaxProfiler",
    "JaxProfilerConfig",
    "LearningRateMonitor",
    "LearningRateMonitorConfig",
    "MetricsTable",
    "MetricsTableConfig",
    "ModelCheckpoint",
    "ModelCheckpointConfig",
    "Monitoring",
    "MonitoringConfig",
    "Plugin",
    "PluginConfig",
    "ProgressBar",
    "ProgressBarConfig",
    "ReduceLROnPlateau",
    "ReduceLROnPlateauConfig",
    "Throughput",
    "ThroughputConfig",
    "build_callbacks",
    "draw_matrix",
]

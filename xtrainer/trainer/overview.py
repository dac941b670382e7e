"""What is about to run, and what has run? The facts logged at the start and at the end."""

import logging
from typing import Any

import jax

from xtrainer.launch import is_main_process
from xtrainer.loggers import NullLogger
from xtrainer.loop import StopReason, make_plan
from xtrainer.metrics import parameter_table
from xtrainer.optim import OptimizerConfig, decayed_params, frozen_patterns, label_params, path_mask
from xtrainer.trainer.nnx_model import model_name
from xtrainer.trainer.view import TrainerView

_LOG = logging.getLogger(__name__)
_MOST_METRICS = 20


def training_facts(
    trainer: TrainerView,
    num_epochs: int | None,
    num_train_steps: int | None,
    steps_per_epoch: int | None,
    train_length: int | None,
    set_lengths: dict[str, int | None],
) -> dict[str, str]:
    """Returns what a person wants to know before a run, by name.

    Args:
        trainer: The trainer.
        num_epochs: As for ``train_model``, and so the next two.
        num_train_steps: Steps in all.
        steps_per_epoch: Steps per epoch.
        train_length: Batches in a pass of the training loader, None where not known.
        set_lengths: Batches of each validation and test set, None where not known.
    """
    plan = make_plan(num_epochs, num_train_steps, steps_per_epoch)
    devices = trainer.mesh.devices.ravel()
    known: dict[str, Any] = {
        "model": model_name(trainer.model),
        "parameters": f"{trainer.get_num_params():,}",
        "devices": f"{devices.size} x {devices[0].device_kind}",
        "mesh": ", ".join(f"{name}={size}" for name, size in trainer.mesh.shape.items()),
        "processes": jax.process_count(),
        "epochs": plan.total_epochs(train_length),
        "steps": plan.total_steps(train_length),
        "batches per pass": train_length,
        "starting step": trainer.progress.step,
        "run folder": trainer.log_path or "none",
    }
    known |= {f"batches of {name}": size for name, size in set_lengths.items()}
    return {name: "not known" if value is None else str(value) for name, value in known.items()}


def summary_facts(trainer: TrainerView) -> dict[str, str]:
    """Returns what a person wants to know after a run, by name; parts that are empty are left out.

    Why it ended, how far it came, the best value of each monitored metric with its step and
    checkpoint, the newest metrics of each set, and where the time went.
    """
    progress, history = trainer.progress, trainer.history
    reason = trainer.stop_reason or StopReason.FINISHED
    facts = {
        "ended": f"{reason.value} {trainer.stop_detail}".strip(),
        "steps": f"{progress.step:,}",
        "epochs": f"{progress.epochs_done:,}",
        "examples": f"{progress.examples:,}",
        "refused steps": f"{progress.skipped:,}" if progress.skipped else "",
        "returns to checkpoints": str(len(progress.rollbacks) or ""),
        "validations": f"{progress.validations:,}" if progress.validations else "",
    }
    for name, best in progress.best.items():
        at = f"step {best['step']}, epoch {best['epoch']}"
        parts = [f"{best['value']:.6g}", at, progress.best_checkpoints.get(name, "")]
        facts[f"best {name}"] = ", ".join(part for part in parts if part)
    for mode in ("train_epoch", "val", "test"):
        if (row := history.newest(mode)) is not None:
            values = [f"{key} {value:.6g}" for key, value in row.metrics.items()]
            more = len(values) - _MOST_METRICS
            values = [*values[:_MOST_METRICS], *([f"and {more} more"] if more > 0 else [])]
            facts[f"{mode}, step {row.step}"] = ", ".join(values)
    trainer.ledger.snapshot()
    facts |= {"time": trainer.ledger.summary(), "run folder": str(trainer.log_path or "")}
    return {name: value for name, value in facts.items() if value}


def tabulate(trainer: TrainerView) -> str:
    """Returns a table of the parameters: layout, size in all and per device, optimizer."""
    params, config = trainer.state.params, trainer.optimizer_config
    frozen = path_mask(frozen_patterns(config), None)(params)
    groups = None
    if isinstance(config, OptimizerConfig) and config.groups:
        groups = label_params(config.groups, params)
    return parameter_table(params, decayed_params(config, params), frozen, groups)


def log_model(trainer: TrainerView) -> None:
    """Gives the table of the parameters to the loggers."""
    if is_main_process() and not isinstance(trainer.logger, NullLogger):
        trainer.logger.log_model(tabulate(trainer))


def log_summary(trainer: TrainerView) -> None:
    """Writes those facts to the log, and gives them to the loggers as ``training_summary``.

    The loggers are given the best values of monitored metrics as such besides.
    """
    facts = summary_facts(trainer)
    if not is_main_process() or isinstance(trainer.logger, NullLogger):
        log_facts(facts)
        return
    text = "\n".join(lines_of(facts))  # the console is one of the loggers
    trainer.logger.log_text("training_summary", text, trainer.progress.step)
    if best := {name: entry["value"] for name, entry in trainer.progress.best.items()}:
        trainer.logger.log_best(best, trainer.progress.step)


def lines_of(facts: dict[str, str]) -> list[str]:
    """Returns one line per fact, aligned.

    Example:
        >>> lines_of({"a": "1", "long": "2"})
        ['a     1', 'long  2']
    """
    width = max(len(name) for name in facts)
    return [f"{name.ljust(width)}  {value}" for name, value in facts.items()]


def log_facts(facts: dict[str, str]) -> None:
    """Writes one line per fact to the log."""
    for line in lines_of(facts):
        _LOG.info("%s", line)

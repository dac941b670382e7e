"""What is about to run? The facts logged at the start."""

import logging
from typing import Any

import jax

from xtrainer.loop import make_plan
from xtrainer.trainer.view import TrainerView

_LOG = logging.getLogger(__name__)


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
        "model": type(trainer.model).__name__,
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


def log_facts(facts: dict[str, str]) -> None:
    """Writes one line per fact to the log."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        _LOG.info("%s  %s", name.ljust(width), value)

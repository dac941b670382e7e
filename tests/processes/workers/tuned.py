"""Scenarios in which the processes of a run look for a batch size together."""

from typing import Any

import jax
import member
import numpy as np
import probes

import xtrainer as xt

ROWS, BATCH = 40, 8


def loader() -> xt.ArrayLoader:
    """Returns whole batches, of which each process takes its part."""
    return xt.ArrayLoader(probes.examples(ROWS), BATCH, shuffle=True, seed=2)


def make_trainer() -> Any:
    """Returns a trainer on all devices of all processes."""
    batch = {name: np.asarray(x)[:BATCH] for name, x in probes.examples(ROWS).items()}
    return probes.traced(batch=batch, mesh=None, logger=xt.LoggerConfig(log_tools=[]))


def tune(own: member.Member) -> dict[str, Any]:
    """Returns what each process finds where one has less memory, and what training gives then."""
    trainer, data = make_trainer(), loader()
    trainer.train_model(data, num_train_steps=2)
    free = trainer.tune_batch_size(data, max_batch_size=32, steps_per_trial=1)
    needed = {trial.rows: trial.memory_bytes or 0 for trial in free.trials}
    before = member.leaves(trainer.state.params)
    told: list[int] = []
    table = trainer.tune_batch_size(
        data,
        max_batch_size=32,
        steps_per_trial=1,
        memory_limit=needed[32] - 1 if own.is_one_of("1") else 2**40,
        on_improvement=lambda trial: told.append(trial.rows),
    )
    restored = member.leaves(trainer.state.params) == before
    trainer.train_model(data, num_train_steps=4)
    other, data = make_trainer(), loader()
    other.train_model(data, num_train_steps=4)
    ends = [member.leaves(one.state.params) for one in (trainer, other)]
    return {
        "free": [[trial.rows, trial.fits] for trial in free.trials],
        "table": [[trial.rows, trial.fits, trial.examples_per_s] for trial in table.trials],
        "best": table.best.rows,
        "told": told,
        "restored": restored,
        "trained as if not tuned": ends[0] == ends[1],
        "processes": jax.process_count(),
    }


if __name__ == "__main__":
    member.play_all({"tune": tune})

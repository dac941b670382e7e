"""Scenarios in which the processes of a run look for a batch size together."""

from typing import Any

import jax
import member
import numpy as np
import probes
import zoo

import xtrainer as xt

ROWS, BATCH = 40, 8


def tune(own: member.Member) -> dict[str, Any]:
    """Returns what each process finds where one has less memory than the other."""
    examples = probes.examples(ROWS)
    trainer = probes.traced(
        model={"width": 2},
        optimizer=zoo.optimizer(),
        batch={name: np.asarray(x)[:BATCH] for name, x in examples.items()},
        mesh=None,
    )
    data = xt.ArrayLoader(examples, BATCH)
    before = member.leaves(trainer.state.params)
    free = trainer.tune_batch_size(data, max_batch_size=16, steps_per_trial=1)
    needed = {trial.rows: trial.memory_bytes or 0 for trial in free.trials}
    told: list[int] = []
    table = trainer.tune_batch_size(
        data,
        max_batch_size=16 + own.index,  # the smallest counts
        steps_per_trial=1,
        memory_limit=needed[16] - 1 if own.is_one_of("1") else 2**40,
        on_improvement=lambda trial: told.append(trial.rows),
    )
    return {
        "free": [[trial.rows, trial.fits] for trial in free.trials],
        "table": [[trial.rows, trial.fits, trial.examples_per_s] for trial in table.trials],
        "best": table.best.rows,
        "told": told,
        "restored": member.leaves(trainer.state.params) == before,
        "processes": jax.process_count(),
    }


if __name__ == "__main__":
    member.play_all({"tune": tune})

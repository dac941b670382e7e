"""A run of several processes whose rate falls and whose batches grow.

Arguments: the folder.
"""

from typing import Any

import jax
import member
import probes

import xtrainer as xt

ROWS, BATCH, STEPS = 32, 4, 20
NEVER: dict[str, Any] = {"monitor": "loss", "min_delta": 1e9}


def run(own: member.Member, mesh: Any = None) -> dict[str, Any]:
    """Trains, and returns what came of it."""
    configs = [
        xt.ReduceLROnPlateauConfig(**NEVER, patience=2, factor=0.5),
        xt.BatchSizeGrowthConfig(**NEVER, patience=3, max_batch_size=16, scale_lr="linear"),
        xt.LearningRateMonitorConfig(),
    ]
    trainer = probes.traced(
        mesh=mesh,
        model={"width": 4},
        logger=xt.LoggerConfig(log_every_n_steps=1, log_tools=[]),
        callbacks=configs,
        check_val_every_n_steps=2,
        check_val_every_n_epoch=-1,
    )
    trainer.logger = probes.Memory()
    train = xt.ArrayLoader(probes.examples(ROWS), BATCH, shuffle=True)
    val = xt.ArrayLoader(probes.examples(8), 8)
    trainer.train_model(train, val, num_train_steps=STEPS)
    return {
        "rates": trainer.logger.column("learning_rate"),
        "ids": trainer.logger.column("id"),
        "examples": trainer.progress.examples,
        "size": trainer.train_batch_size,
        "recompilations": trainer.compiled_train_step.programs.recompilations,
        "scale": float(jax.device_get(trainer.state.opt_state[1].scale)),
    }


if __name__ == "__main__":
    this = member.join()
    this.record("end", run(this))

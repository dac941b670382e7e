"""Who looks after a trainer while it trains? A watchdog with the limits of its config."""

from xtrainer.loop import Limits, Watchdog
from xtrainer.trainer.view import TrainerView


def watched(trainer: TrainerView) -> Watchdog:
    """Returns what looks after a trainer while it is entered."""
    config = trainer.trainer_config
    limits = Limits(
        startup_s=config.startup_timeout_s,
        hang_s=config.hang_timeout_s,
        loader_s=config.loader_timeout_s,
        validation_s=config.validation_timeout_s,
        save_s=config.save_timeout_s,
    )
    # Steps that are not compiled are there to be looked at, for as long as it takes.
    on_hang = "report" if config.debug else config.on_hang
    ends = {"flush": trainer.logger.flush, "tell": trainer.journal.give_up}
    return Watchdog(trainer, limits, on_hang, trainer.log_path, **ends)

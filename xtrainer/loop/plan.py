"""What was asked of this run? Epochs or steps, and when to validate and log."""

import math
from dataclasses import dataclass, replace

from xtrainer.counts import MAX_COUNT, as_int, wanted_count
from xtrainer.errors import ConfigError
from xtrainer.state import Progress


@dataclass(frozen=True)
class Plan:
    """The end of a run and its rhythm. Epochs and steps count from 1 and in all, not per call.

    Attributes:
        num_epochs: Epochs in all, or None where steps are counted.
        num_train_steps: Steps in all, or None where epochs are counted.
        steps_per_epoch: Steps after which an epoch ends; None: with the loader's pass.
        log_every_n_steps: Steps per logged row.
        val_every_n_epochs: Epochs between validations, 0: never.
        val_every_n_steps: Steps between validations, 0: never.
        val_points: Steps of an epoch after which it is validated, the last one at its end.
        online_from: The step before a pass that counts as no epoch; None: an ordinary run.
    """

    num_epochs: int | None
    num_train_steps: int | None
    steps_per_epoch: int | None
    log_every_n_steps: int = 50
    val_every_n_epochs: int = 1
    val_every_n_steps: int = 0
    val_points: tuple[int, ...] = ()
    online_from: int | None = None

    @property
    def is_online(self) -> bool:
        """Whether this is one pass of updates, without an epoch, a validation or a test."""
        return self.online_from is not None

    def done(self, progress: Progress) -> bool:
        """Says whether nothing is left to do."""
        if self.num_train_steps is not None:
            return progress.step >= self.num_train_steps
        return progress.epochs_done >= (self.num_epochs or 0)

    def batches_left(self, progress: Progress) -> int | None:
        """Returns how many batches the epoch under way can still take; None: not known."""
        limits = []
        if self.steps_per_epoch is not None:
            limits.append(self.steps_per_epoch - progress.step_in_epoch)
        if self.num_train_steps is not None:
            limits.append(self.num_train_steps - progress.step)
        return max(min(limits), 0) if limits else None

    def epoch_is_full(self, progress: Progress) -> bool:
        """Says whether the epoch under way has all the steps an epoch may have."""
        return self.steps_per_epoch is not None and progress.step_in_epoch >= self.steps_per_epoch

    @property
    def passes_end_epochs(self) -> bool:
        """Whether an epoch ends with the loader's pass, however few its steps were."""
        return self.num_train_steps is None or self.steps_per_epoch is None

    def epoch_continues(self, progress: Progress) -> bool:
        """Says whether an epoch goes on when the loader's pass has ended."""
        if self.passes_end_epochs:
            return False
        return not self.epoch_is_full(progress) and not self.done(progress)

    @property
    def validates(self) -> bool:
        """Whether there is any validation, given a set to validate on."""
        return self.val_every_n_epochs > 0 or self.val_every_n_steps > 0 or bool(self.val_points)

    def validates_after_step(self, step: int) -> bool:
        """Says whether a validation by steps is due."""
        return self.val_every_n_steps > 0 and step % self.val_every_n_steps == 0

    def with_checks(self, checks_per_epoch: int, train_length: int | None) -> "Plan":
        """Returns the plan with so many validations in each epoch, evenly spread.

        Args:
            checks_per_epoch: How many; below 1: the plan as it is.
            train_length: Batches of a pass of the training loader, None where not known.

        Raises:
            ConfigError: If it is not known how many steps an epoch has.

        Example:
            >>> make_plan(num_epochs=2).with_checks(3, train_length=10).val_points
            (3, 7, 10)
        """
        if checks_per_epoch < 1 or self.is_online:
            return self
        ends = [self.steps_per_epoch, train_length if self.passes_end_epochs else None]
        length = min((steps for steps in ends if steps), default=None)
        if length is None:
            raise ConfigError(
                f"checks_per_epoch: found {checks_per_epoch} with a training loader that does not "
                "know its length, expected epochs of a known number of steps. Pass "
                "steps_per_epoch, give the loader a __len__, or use check_val_every_n_steps."
            )
        halves = (
            2 * length * number + checks_per_epoch for number in range(1, checks_per_epoch + 1)
        )
        points = {max(half // (2 * checks_per_epoch), 1) for half in halves}
        return replace(self, val_points=tuple(sorted(points)))

    def checks_now(self, progress: Progress) -> bool:
        """Says whether one of so many validations of an epoch is due by itself.

        The end of an epoch that is validated anyway is left to that.
        """
        if progress.step_in_epoch not in self.val_points:
            return False
        at_end = progress.step_in_epoch == self.val_points[-1]
        return not (at_end and self.validates_after_epoch(progress.epochs_done + 1))

    def next_check(self, step: int, progress: Progress) -> int | None:
        """Returns the next step after one at which ``checks_now`` may be true.

        Args:
            step: Not before that of ``progress``.
            progress: Of the run; tells where the epoch under way began.
        """
        if not self.val_points:
            return None
        length, begin = self.val_points[-1], progress.step - progress.step_in_epoch
        epochs, place = divmod(step - begin, length)
        following = next(point for point in self.val_points if point > place)
        return begin + epochs * length + following

    def validates_after_epoch(self, epoch: int) -> bool:
        """Says whether a validation by epochs is due."""
        return self.val_every_n_epochs > 0 and epoch % self.val_every_n_epochs == 0

    def total_steps(self, train_length: int | None) -> int | None:
        """Returns the steps of the whole run, where they are known.

        Raises:
            ConfigError: If they are more than a state can count.
        """
        if self.num_train_steps is not None:
            return self.num_train_steps
        if self.online_from is not None:
            return None if train_length is None else self.online_from + train_length
        lengths = [n for n in (self.steps_per_epoch, train_length) if n is not None]
        steps = min(lengths) * (self.num_epochs or 0) if lengths else None
        if steps is not None and steps > MAX_COUNT:
            raise ConfigError(
                f"train_model: found num_epochs={self.num_epochs} of {min(lengths)} steps, which "
                f"are {steps}, expected at most {MAX_COUNT} in all. Ask for fewer epochs, or say "
                "how many steps with num_train_steps."
            )
        return steps

    def total_epochs(self, train_length: int | None) -> int | None:
        """Returns the epochs of the whole run, where they are known."""
        if self.num_epochs is not None:
            return self.num_epochs
        length = self.steps_per_epoch or train_length
        return math.ceil((self.num_train_steps or 0) / length) if length else None


def make_plan(
    num_epochs: int | None = None,
    num_train_steps: int | None = None,
    steps_per_epoch: int | None = None,
    log_every_n_steps: int = 50,
    check_val_every_n_epoch: int = 1,
    check_val_every_n_steps: int = -1,
) -> Plan:
    """Returns the plan of a run.

    Raises:
        ConfigError: For both or neither of ``num_epochs`` and ``num_train_steps``, and for numbers
            that are not whole, too small or too large to be counted; all together.

    Example:
        >>> make_plan(num_train_steps=10).done(Progress(step=10))
        True
    """
    problems = []
    if (num_epochs is None) == (num_train_steps is None):
        found = "neither" if num_epochs is None else f"both ({num_epochs} and {num_train_steps})"
        problems.append(
            f"train_model: found {found} of num_epochs and num_train_steps, expected exactly one."
        )
    smallest = {"num_epochs": 0, "num_train_steps": 0, "steps_per_epoch": 1}
    given = {
        "num_epochs": num_epochs,
        "num_train_steps": num_train_steps,
        "steps_per_epoch": steps_per_epoch,
    }
    for name, value in given.items():
        wanted = None if value is None else wanted_count(value, smallest[name])
        if wanted is not None:
            problems.append(f"train_model: found {name}={value!r}, expected {wanted}.")
            if name == "num_epochs" and isinstance(value, float):
                problems[-1] += (
                    f" A part of one: **TrainingUnit.EPOCH.totals({value}, len(loader))."
                )
    if problems:
        raise ConfigError(problems)
    return Plan(
        as_int(num_epochs),
        as_int(num_train_steps),
        as_int(steps_per_epoch),
        log_every_n_steps,
        max(check_val_every_n_epoch, 0),
        max(check_val_every_n_steps, 0),
    )

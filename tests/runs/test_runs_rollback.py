"""Does a run that goes back end as one that never saw the batches it went wrong with?"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import ConfigError
from xtrainer.loop import StopReason

STEPS = 13
SAVING = xt.ModelCheckpointConfig(every_n_steps=3, every_n_epochs=99, max_to_keep=None)


class Planted(Exception):
    """Raised by a test."""


def one(number: int, bad: Sequence[int] = (), huge: Sequence[int] = ()) -> probes.Batch:
    """Returns a batch of a number; with NaN, or with inputs that give a finite but large loss."""
    batch = probes.one(number, bad=bad)
    if number in huge:
        batch["inputs"] = batch["inputs"] * 300
    return batch


def make(folder: Path, saving: xt.ModelCheckpointConfig = SAVING, every: int = 2, **kwargs: Any):
    """Returns a trainer with dropout and momentum; its loss shows when its inputs are large."""
    kwargs = {"nonfinite_policy": "rollback", "max_consecutive_nonfinite": 1, **kwargs}
    return probes.traced(
        **{
            "model": {"width": 4, "batch_norm": False, "dropout": 0.3},
            "logger": zoo.file_logger(folder, every),
            "callbacks": [saving],
            "check_val_every_n_steps": 4,
            **kwargs,
        }
    )


def rows(folder: Path) -> list[Any]:
    found = []
    for row in xt.read_metrics(folder):
        metrics = {k: v for k, v in row["metrics"].items() if not k.endswith("time_s")}
        found.append((row["set"], row["step"], row["epoch"], metrics))
    return found


def train(trainer: Any, data: Any, steps: int = STEPS, **options: Any) -> Any:
    trainer.train_model(data, probes.numbered(2, first=100), num_train_steps=steps, **options)
    return trainer


def assert_equal_runs(first: Any, second: Any, first_folder: Path, second_folder: Path) -> None:
    """Fails unless states are equal bit for bit, and rows, and how far both runs are."""
    zoo.assert_same(first.state, second.state)
    assert rows(first_folder) == rows(second_folder)
    own, other = first.progress.to_json(), second.progress.to_json()
    assert {**own, "rollbacks": []} == {**other, "rollbacks": []}


@pytest.mark.parametrize(
    ("limit", "bad", "options"),
    [
        (1, (4,), {}),
        (1, (1,), {}),
        (1, (8,), {}),  # the last of a pass
        (2, (4, 5), {}),
        (3, (7, 8, 1), {}),  # over the end of a pass; the first 1 comes alone and is only refused
        (1, (5,), {"steps_per_dispatch": 3}),
        (1, (2,), {"gradient_accumulate_steps": 2}),
        (1, (6,), {"max_steps_in_flight": 5}),
    ],
)
def test_it_ends_as_one_that_never_saw_them(
    tmp_path: Path, limit: int, bad: tuple[int, ...], options: dict[str, Any]
) -> None:
    passes = 2
    options = {"max_consecutive_nonfinite": limit, **options}
    back = make(tmp_path / "back", max_rollbacks=passes + 1, **options)
    train(back, [one(n, bad) for n in range(1, 9)], 11)
    assert back.stop_reason is StopReason.FINISHED
    plain = make(tmp_path / "plain", nonfinite_policy="skip", **options)

    class Without:
        """Gives the passes without what was left out of each."""

        passes = 0

        def __iter__(self) -> Any:
            gone = {batch for index, batch in left_out if index == self.passes}
            self.passes += 1
            return iter([one(n, bad) for n in range(1, 9) if n not in gone])

    left_out = back.progress.skipped_batches
    assert {(batch - 1) % 8 + 1 for _, batch in left_out} == set(bad)
    train(plain, Without(), 11)
    assert_equal_runs(back, plain, tmp_path / "back", tmp_path / "plain")


def test_it_is_told_of_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []
    trainer = make(tmp_path)
    note = probes.acting("on_rollback", lambda trainer, step: told.append(step))
    trainer.callbacks.append(note(trainer))
    with caplog.at_level(logging.WARNING):
        train(trainer, [one(n, (5,)) for n in range(1, 14)], 12)
    assert told == [3]
    assert [vars(r) for r in trainer.progress.rollbacks] == [
        {
            "from_step": 5,
            "to_step": 3,
            "reason": "Step 5 was not finite (NaN or Inf in loss, gradients or updates).",
            "skipped": ((0, 5),),
        }
    ]
    assert "Training goes back from step 5 to step 3 and leaves out 1 batches" in caplog.text
    assert "goes back from step 5" in (tmp_path / "output_0.log").read_text()
    again = make(tmp_path)
    again.load_model()
    assert again.progress.rollbacks == trainer.progress.rollbacks


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("huge", [9, 10])
def test_a_spike_of_the_loss_sends_it_back(tmp_path: Path, every: int, huge: int) -> None:
    options = {"every": every, "optimizer": zoo.optimizer("sgd", 0.01)}
    back = make(tmp_path / "back", spike_threshold=4.0, **options)
    train(back, [one(n, huge=(huge,)) for n in range(1, 17)])
    assert back.stop_reason is StopReason.FINISHED
    [rollback] = back.progress.rollbacks
    first = huge if every == 1 else 9
    assert rollback.skipped == tuple((0, n) for n in range(first, first + every))
    assert "more than 4 times the median" in rollback.reason
    gone = {n for _, n in rollback.skipped}
    plain = make(tmp_path / "plain", nonfinite_policy="stop", **options)
    train(plain, [one(n) for n in range(1, 17) if n not in gone])
    assert_equal_runs(back, plain, tmp_path / "back", tmp_path / "plain")


def test_a_run_that_fails_after_it_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    data = [one(n, bad=(5,), huge=(11,)) for n in range(1, 17)]
    options = {"spike_threshold": 4.0, "every": 1, "optimizer": zoo.optimizer("sgd", 0.01)}
    whole = train(make(tmp_path / "whole", **options), data)
    assert len(whole.progress.rollbacks) == 2

    def fail(step: int) -> Any:
        def act(trainer: Any, *args: Any) -> None:
            if trainer.global_step == step and trainer.progress.rollbacks:
                raise Planted

        return probes.acting("on_training_step", act)

    saving = xt.ModelCheckpointConfig(
        every_n_steps=3, every_n_epochs=99, max_to_keep=None, save_on_exception=False
    )
    for step in (4, 8, 10, 12):
        trainer = make(tmp_path / "broken", saving, **options)
        trainer.callbacks.append(fail(step)(trainer))
        with pytest.raises(Planted):
            train(trainer, data)
    trainer = train(make(tmp_path / "broken", saving, **options), data)
    assert_equal_runs(trainer, whole, tmp_path / "broken", tmp_path / "whole")
    assert trainer.progress.rollbacks == whole.progress.rollbacks


def test_it_goes_back_only_so_often(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_rollbacks=2)
    train(trainer, [one(n, bad=(3, 6, 8)) for n in range(1, 17)])
    assert trainer.stop_reason is StopReason.NONFINITE
    assert "The run had gone back 2 times already (max_rollbacks)." in trainer.stop_detail
    assert len(trainer.progress.rollbacks) == 2
    assert trainer.global_step == 5  # batch 8 would have been step 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(zoo.host(trainer.state.params)))


def test_after_too_many_spikes_it_ends_and_says_so(tmp_path: Path) -> None:
    options = {"every": 1, "optimizer": zoo.optimizer("sgd", 0.01)}
    trainer = make(tmp_path, max_rollbacks=1, spike_threshold=4.0, **options)
    train(trainer, [one(n, huge=(6, 9)) for n in range(1, 17)])
    assert trainer.stop_reason is StopReason.UNSTABLE
    assert trainer.stop_reason.exit_code == 3


def test_without_a_checkpoint_from_before_it_ends_and_says_so(tmp_path: Path) -> None:
    saving = xt.ModelCheckpointConfig(every_n_steps=1, max_to_keep=1)
    trainer = make(tmp_path, saving, every=4, spike_threshold=4.0)
    train(trainer, [one(n, huge=(17,)) for n in range(1, 40)], 30)
    assert trainer.stop_reason is StopReason.UNSTABLE
    assert "There is no checkpoint from before step 17" in trainer.stop_detail


def test_the_learning_rate_is_scaled_from_there_on(tmp_path: Path) -> None:
    trainer = make(
        tmp_path / "back",
        rollback_lr_scale=0.5,
        optimizer=optax.sgd(0.1, momentum=0.9),
        saving=xt.ModelCheckpointConfig(every_n_steps=2, every_n_epochs=99),
    )
    train(trainer, [one(n, bad=(5,)) for n in range(1, 17)], 8)
    assert [r.to_step for r in trainer.progress.rollbacks] == [4]
    # The trace of momentum is not scaled, so the rate is all that changes.
    rate = optax.piecewise_constant_schedule(0.1, {4: 0.5})
    plain = make(
        tmp_path / "plain", nonfinite_policy="stop", optimizer=optax.sgd(rate, momentum=0.9)
    )
    train(plain, [one(n) for n in range(1, 17) if n != 5], 8)
    zoo.assert_close(trainer.state.params, plain.state.params)
    again = make(tmp_path / "back", rollback_lr_scale=0.5, optimizer=optax.sgd(0.1, momentum=0.9))
    again.load_model()
    zoo.assert_same(again.state, trainer.state)


def test_the_monitored_learning_rate_is_the_scaled_one(tmp_path: Path) -> None:
    trainer = make(tmp_path, rollback_lr_scale=0.5)
    assert trainer.learning_rate(1) == pytest.approx(0.01)
    train(trainer, [one(n, bad=(5,)) for n in range(1, 17)], 8)
    assert trainer.learning_rate(8) == pytest.approx(0.005)


def test_it_needs_checkpoints_to_go_back_to(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.callbacks.clear()
    with pytest.raises(ConfigError, match="expected a ModelCheckpointConfig among the callbacks"):
        train(trainer, [one(1)])


def test_it_needs_data_that_can_be_read_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a training loader that is an iterator"):
        train(make(tmp_path), iter([one(1), one(2)]))


def test_every_mistake_in_its_settings_is_told() -> None:
    config = xt.TrainerConfig(
        spike_threshold=0.5, max_rollbacks=0, rollback_lr_scale=2.0, logger=None
    )
    text = "\n".join(config.problems())
    for name in ("with nonfinite_policy='stop'", "> 1", "max_rollbacks: found 0", "0 < scale <= 1"):
        assert name in text

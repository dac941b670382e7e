"""The GAN, shrunk: does it play by the rules of one step, and is a broken one told apart?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import gan
import jax
import numpy as np
import pytest

import xtrainer as xt
from xtrainer.parallel import build_mesh

SMALL = [
    "--config.num_train_steps=40",
    "--config.model.model_config.width=16",
    "--config.data.batch_size=32",
    "--config.trainer.logger.log_every_n_steps=20",
    "--config.trainer.enable_progress_bar=False",
    "--config.trainer.steps_per_dispatch=1",
]


def config_of(run: Path, *more: str) -> Any:
    arguments = [*SMALL, f"--config.trainer.logger.log_path={run}", *more]
    return xt.parse_config(gan.get_config(), arguments)


def leaves(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, dict[str, Any]]]:
    """Gives a run folder, its trainer and its results, on all eight devices."""
    run, made = tmp_path_factory.mktemp("gan"), []
    make = gan.make_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "make_trainer", lambda config: made.append(make(config)) or made[0])
        results = gan.run(config_of(run))
    yield run, made[0], results


def test_a_gan_is_evaluated_to_the_last_digit(done: Any) -> None:
    run, _, results = done
    assert evaluate.evaluate(run) == results["test"]
    assert {"modes_covered", "quality", "near", "distance"} <= set(results["test"])


def test_both_turns_are_logged_with_the_rates_of_both_optimizers(done: Any) -> None:
    rows = [row for row in xt.read_metrics(done[0]) if row["set"] == "train"]
    assert [row["step"] for row in rows] == [20, 40]
    last = rows[-1]["metrics"]
    both = last["discriminator_loss_mean"] + last["generator_loss_mean"]
    assert last["loss_mean"] == pytest.approx(both)
    rates = [last[f"learning_rate/{name}"] for name in ("discriminator", "generator")]
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_each_optimizer_has_counted_every_step_once(done: Any) -> None:
    inner = done[1].state.opt_state.inner
    assert {n: int(own["learning_rate"].count) for n, own in inner.items()} == {
        "discriminator": 40, "generator": 40,
    }  # fmt: skip


class Stopped(gan.GanTrainer):
    """Is asked to end after 21 steps."""

    def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        if step_idx == 21:
            self.request_stop()


def test_a_gan_that_was_stopped_ends_as_if_it_had_not_been(done: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for trainer_class in (Stopped, gan.GanTrainer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gan, "GanTrainer", trainer_class)
            trainer = gan.make_trainer(config)
        assert trainer.global_step == 0
        loaders = gan.make_loaders(config.data)
        trainer.train_model(loaders["train"], loaders["val"], num_train_steps=40)
        assert trainer.global_step == (21 if trainer_class is Stopped else 40)
    assert trainer.progress.step == int(done[1].state.step) == 40
    for name in ("params", "opt_state"):
        assert leaves(getattr(trainer.state, name)) == leaves(getattr(done[1].state, name))


def test_one_device_takes_the_step_of_eight_among_which_the_state_is_divided(
    tmp_path: Path,
) -> None:
    config = config_of(
        tmp_path,
        "--config.optimizer.name=sgd",  # whose update is the gradient
        "--config.optimizer.scheduler.lr=1.0",
        "--config.model.parallel.fsdp_axis_size=4",
        "--config.model.parallel.fsdp_min_weight_size=1",
    )
    batch, found = next(iter(gan.make_loaders(config.data)["train"])), []
    alone = build_mesh(xt.ParallelConfig(), jax.devices()[:1])
    for mesh in (alone, None):
        trainer = gan.make_trainer(config, mesh)
        before = jax.tree.map(np.asarray, trainer.state.params)
        after, _, _ = jax.jit(trainer.create_training_step_function())(trainer.state, batch)
        found.append(jax.tree.map(lambda x, y: np.asarray(x) - y, after.params, before))
    kernel = trainer.state.params["generator"]["Dense_1"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_coverage_tells_a_collapse_from_a_whole_ring() -> None:
    collapsed = gan.add_coverage({f"mode_{i}": float(i == 3) for i in range(8)})
    whole = gan.add_coverage({f"mode_{i}": 0.125 for i in range(8)})
    assert collapsed == {"modes_covered": 1.0, "quality": 0.125}
    assert whole == {"modes_covered": 8.0, "quality": 1.0}


@pytest.mark.slow
def test_a_gan_finds_all_modes_and_one_optimizer_for_both_finds_none(tmp_path: Path) -> None:
    arguments = [f"--config.trainer.logger.log_path={tmp_path}/run", SMALL[4]]
    config = xt.parse_config(gan.get_config(), [*arguments, "--config.num_train_steps=4000"])
    found = gan.run(config)["test"]
    assert found["modes_covered"] == 8
    assert found["quality"] > 0.6

    class Together(gan.GanTrainer):
        create_training_step_function = xt.TrainerModule.create_training_step_function

    with config.unlocked():
        config.optimizer.in_turns = False
        config.trainer.logger.log_path = f"{tmp_path}/together"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "GanTrainer", Together)
        assert gan.run(config)["test"]["quality"] < 0.1

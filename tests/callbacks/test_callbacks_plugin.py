"""Does a plug-in change configs once, batches once each, keep its state, and end the run?"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import read_meta
from xtrainer.data import LoaderPosition, LoaderSource
from xtrainer.errors import BatchError
from xtrainer.trainer import plugins


@dataclass(frozen=True, kw_only=True)
class WideningConfig(xt.PluginConfig):
    """Doubles the width of the model, takes another seed, halves the inputs; ends after steps."""

    steps: int = 100
    """Steps, in all starts of the run, after which it ends."""

    def configure_trainer(self, trainer_config: Any) -> Any:
        return dataclasses.replace(trainer_config, seed=trainer_config.seed + 1)

    def configure_model(self, model_config: Any) -> Any:
        model = model_config.model_config
        return dataclasses.replace(model_config, model_config={"width": 2 * model["width"]})

    def create(self, trainer: Any, data_module: Any = None) -> "Widening":
        return Widening(self, trainer, data_module)


class Widening(xt.Plugin):
    """Notes what it processes; counts steps."""

    config: WideningConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count = 0
        self.processed: list[tuple[xt.Phase, int]] = []

    def process_batch(self, batch: Any, phase: xt.Phase) -> Any:
        self.processed.append((phase, int(batch["ids"][0])))
        return {**batch, "inputs": batch["inputs"] / 2}

    def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        self.count += 1
        if self.count == self.config.steps:
            self.trainer.request_stop(detail="Enough.")

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def make_trainer(*callbacks: Any, width: int = 4, **config: Any) -> Any:
    return probes.traced(model={"width": width}, callbacks=[*callbacks], **config)


def halved(count: int, first: int = 1) -> list[probes.Batch]:
    return [{**b, "inputs": b["inputs"] / 2} for b in probes.numbered(count, first=first)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A run with a plug-in that ends it at step 5, and its continuation by the same script."""

    def start(folder: Path, steps: int) -> Any:
        saves = xt.ModelCheckpointConfig(monitor=None, every_n_steps=1)
        return make_trainer(
            WideningConfig(steps=steps), saves, logger=zoo.file_logger(folder), width=4
        )

    folder = tmp_path_factory.mktemp("widened")
    first, second = start(folder, 5), start(folder, 8)
    first.train_model(probes.numbered(4), probes.numbered(1, first=50), num_epochs=3)
    second.train_model(probes.numbered(4), probes.numbered(1, first=50), num_epochs=3)
    yield {"first": first, "second": second, "folder": folder}
    for trainer in (first, second):
        trainer.logger.finalize("finished")  # evaluations have opened it again


def test_a_plugin_ends_the_run_and_its_count_goes_on_after_a_resume(runs: dict[str, Any]) -> None:
    first, second = runs["first"], runs["second"]
    assert first.stop_reason is second.stop_reason is xt.StopReason.REQUESTED
    assert first.stop_detail == "Enough."
    assert (first.global_step, second.global_step) == (5, 8)
    assert second.plugins.keys() == {"Widening"} and second.plugins["Widening"].count == 8


def test_configs_are_changed_once_for_each_start(runs: dict[str, Any]) -> None:
    for trainer in (runs["first"], runs["second"]):
        assert trainer.model.width == 8 and trainer.trainer_config.seed == 1
        assert trainer.model_config.model_config == {"width": 8}
        assert trainer.trainer_config.callbacks[0].is_applied


def test_saved_configs_are_those_in_use_and_are_not_changed_again(runs: dict[str, Any]) -> None:
    step = next(path for path in runs["folder"].rglob("8") if path.is_dir())
    saved = read_meta(step)["config"]
    config = xt.Config.from_dict(xt.TrainerConfig, saved["trainer"])
    config = dataclasses.replace(config, logger=None, callbacks=config.callbacks[:1])
    model = xt.Config.from_dict(xt.ModelConfig, {**saved["model"], "model_class": None})
    assert (config.seed, model.model_config) == (1, {"width": 8})
    assert plugins.configured(config, model) == (config, model)


def test_a_rebuilt_trainer_evaluates_with_its_plugin(runs: dict[str, Any]) -> None:
    again = probes.Traced.from_run(runs["folder"])
    assert again.model.width == 8 and again.plugins["Widening"].count == 8
    zoo.assert_same(again.state.params, runs["second"].state.params)
    data = probes.numbered(2)
    assert again.eval_model(data) == runs["second"].eval_model(data)


def test_every_batch_is_processed_once_before_all_else_sees_it(runs: dict[str, Any]) -> None:
    trainer = runs["first"]
    trainer.predict(probes.numbered(2, first=70), lambda params, apply_fn, batch, rng: batch["ids"])
    trainer.test_model(probes.numbered(1, first=80))
    seen = trainer.plugins["Widening"].processed
    of = lambda phase: [number for other, number in seen if other is phase]  # noqa: E731
    train = of(xt.Phase.TRAIN)
    assert train[:5] == [1, 2, 3, 4, 1] and len(train) <= 8  # a few were read ahead
    assert of(xt.Phase.VALIDATION) == [50]
    assert (of(xt.Phase.PREDICT), of(xt.Phase.TEST)) == ([70, 71], [80])


def test_a_run_with_a_plugin_is_one_with_the_changes_made_by_hand(runs: dict[str, Any]) -> None:
    trainer = runs["second"]
    plain = make_trainer(width=8, seed=1)
    plain.train_model(halved(4), num_train_steps=8)
    zoo.assert_same(trainer.state.params, plain.state.params)
    assert plain.eval_model(halved(2)) == trainer.eval_model(probes.numbered(2))
    assert plain.trainer_config.callbacks == []


def configured(*callbacks: Any, **config: Any) -> Any:
    given = xt.TrainerConfig(callbacks=list(callbacks), logger=None, **config)
    return plugins.configured(given, xt.ModelConfig(model_config={"width": 1}))


def test_plugins_are_applied_in_their_order_and_each_once() -> None:
    trainer, model = configured(WideningConfig(), xt.ProgressBarConfig(), WideningConfig())
    assert (trainer.seed, model.model_config) == (2, {"width": 4})
    assert [getattr(c, "is_applied", None) for c in trainer.callbacks] == [True, None, True]
    assert configured(xt.ProgressBarConfig())[0].callbacks == [xt.ProgressBarConfig()]


@dataclass(frozen=True, kw_only=True)
class AddingConfig(xt.PluginConfig):
    """Adds a callback, or takes itself out."""

    adds: Any = None
    """What it adds; None: it takes itself out."""

    def configure_trainer(self, trainer_config: Any) -> Any:
        kept = [] if self.adds is None else [*trainer_config.callbacks, self.adds]
        return dataclasses.replace(trainer_config, callbacks=kept)


def test_what_a_plugin_adds_is_applied_too() -> None:
    trainer, model = configured(AddingConfig(adds=WideningConfig()))
    assert (trainer.seed, model.model_config) == (1, {"width": 2})
    assert [c.is_applied for c in trainer.callbacks] == [True, True]
    assert configured(AddingConfig())[0].callbacks == []


@dataclass(frozen=True, kw_only=True)
class GivenConfig(xt.PluginConfig):
    """Returns what it was made with."""

    trainer: Any = None
    """Of ``configure_trainer``."""

    def configure_trainer(self, trainer_config: Any) -> Any:
        return self.trainer(trainer_config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: None, "GivenConfig.configure_trainer: found a NoneType"),
        (lambda config: dataclasses.replace(config, seed=-1), r"trainer\.seed: found -1"),
        (
            lambda config: dataclasses.replace(
                config,
                callbacks=[*config.callbacks, GivenConfig(trainer=config.callbacks[0].trainer)],
            ),
            "added more than 50 others",
        ),
    ],
)
def test_configs_that_cannot_be_are_named(change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(xt.ConfigError, match=said):
        configured(GivenConfig(trainer=change))


def test_a_plugin_of_the_main_process_alone_is_refused() -> None:
    (said,) = WideningConfig(main_process_only=True).problems()
    assert said == "main_process_only: found True, expected False: every process has batches."


def test_plugins_of_one_class_have_numbers() -> None:
    trainer: Any = None
    made = [Widening(WideningConfig(), trainer), xt.Callback(xt.CallbackConfig(), trainer)]
    made.append(Widening(WideningConfig(), trainer))
    assert plugins.by_name(made) == {"Widening": made[0], "Widening_1": made[2]}


def source_of(process: Any, count: int = 4) -> LoaderSource:
    source = LoaderSource(probes.numbered(count), "train")
    source.process = process
    return source


def test_a_batch_that_is_looked_at_or_given_back_is_not_processed_again() -> None:
    seen: list[int] = []

    def process(batch: Any) -> Any:
        seen.append(int(batch["ids"][0]))
        return {"ids": -batch["ids"]}

    source = source_of(process)
    assert source.peek()["ids"][0] == -1
    pulled = [source.pull(), source.pull()]
    source.push_back(pulled)
    assert [source.next_host()[0]["ids"][0] for _ in range(3)] == [-1, -2, -3]
    assert seen == [1, 2, 3]


def test_batches_that_are_skipped_are_not_processed() -> None:
    seen: list[int] = []
    source = source_of(lambda batch: seen.append(int(batch["ids"][0])) or batch)
    source.restore(LoaderPosition(0, 2))
    assert source.next_host()[0]["ids"][0] == 3
    assert seen == [3]


def test_what_a_plugin_keeps_of_its_own_may_be_changed_later() -> None:
    buffer = np.zeros(probes.ROWS)

    def process(batch: Any) -> Any:
        buffer[:] = batch["ids"]
        return {"ids": buffer}

    source = source_of(process)
    found = [source.next_host()[0]["ids"][0] for _ in range(3)]
    assert found == [1, 2, 3]


def test_an_error_of_a_plugin_names_the_batch() -> None:
    with pytest.raises(BatchError, match="different leading axes") as caught:
        source_of(lambda batch: {**batch, "more": np.zeros(1)}).pull()
    assert caught.value.__notes__ == ["while reading batch 1 of the 'train' loader"]


class Ending(Widening):
    def process_batch(self, batch: Any, phase: xt.Phase) -> Any:
        return next(iter(()))


def test_a_plugin_cannot_end_the_loader_by_mistake() -> None:
    trainer: Any = None
    process = plugins.processing([Ending(WideningConfig(), trainer)])
    assert process is not None
    with pytest.raises(RuntimeError, match="process_batch of a plug-in raised StopIteration"):
        source_of(lambda batch: process(batch, xt.Phase.TRAIN)).pull()
    assert plugins.processing([xt.Plugin(WideningConfig(), trainer)]) is None

"""Is a data module called in order, read in its place, and taken down whatever happens?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError


class Noted(xt.DataModule):
    """Twelve rows, shuffled anew for each pass; notes what is called, fails where it is told."""

    def __init__(self, fails: str = "", again: str = "") -> None:
        self.calls: list[Any] = []
        self.fails, self.again = fails, again
        self.data: Any = None

    def note(self, name: str, *phases: xt.Phase) -> None:
        self.calls.append((name, *[phase.value for phase in phases]))
        if name in (self.fails, self.again):
            raise OSError(f"{name} fails")

    def prepare_data(self) -> None:
        self.note("prepare_data")

    def setup(self, phase: xt.Phase) -> None:
        self.note("setup", phase)
        self.data = probes.examples(12)

    def train_loader(self) -> Any:
        self.note("train_loader")
        return xt.ArrayLoader(self.data, batch_size=4, shuffle=True)

    def val_loader(self) -> Any:
        self.note("val_loader")
        return {"a": probes.numbered(1), "b": probes.numbered(2)}

    def test_loader(self) -> Any:
        self.note("test_loader")
        return probes.numbered(3)

    def predict_loader(self) -> Any:
        self.note("predict_loader")
        return probes.numbered(2)

    def teardown(self, phase: xt.Phase) -> None:
        self.note("teardown", phase)
        self.data = None


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    return probes.Repeatable(probes.traced())


def use(trainer: Any, phase: str, module: xt.DataModule) -> Any:
    """Calls the method of a phase."""
    if phase == "train":
        return trainer.train_model(module, num_epochs=1)
    if phase == "predict":
        return trainer.predict(module, lambda params, apply_fn, batch, rng: batch["ids"])
    return {"validation": trainer.eval_model, "test": trainer.test_model}[phase](module)


LOADERS = {
    "train": ["train_loader", "val_loader", "test_loader"],
    "validation": ["val_loader"],
    "test": ["test_loader"],
    "predict": ["predict_loader"],
}


@pytest.mark.parametrize("phase", LOADERS)
def test_a_phase_is_called_in_order_and_the_data_are_prepared_once(
    stage: probes.Repeatable, phase: str
) -> None:
    trainer, module = stage.begin(), Noted()
    around = [("setup", phase), *[(name,) for name in LOADERS[phase]], ("teardown", phase)]
    use(trainer, phase, module)
    assert module.calls == [("prepare_data",), *around]
    module.calls.clear()
    use(trainer, phase, module)
    assert module.calls == around


def test_a_module_gives_what_its_loaders_give(stage: probes.Repeatable) -> None:
    module, by_hand = Noted(), Noted()
    by_hand.setup(xt.Phase.TRAIN)
    trainer = stage.begin()
    loaders = (by_hand.train_loader(), by_hand.val_loader(), by_hand.test_loader())
    results = trainer.train_model(*loaders, num_epochs=2)
    course = probes.learned(trainer)
    trainer = stage.begin()
    assert trainer.train_model(train_loader=module, num_epochs=2) == results
    probes.assert_same_course(probes.learned(trainer), course)
    assert results.keys() == {"val_epoch_1", "val_epoch_2", "test"}
    found = use(trainer, "validation", module)
    assert found == trainer.eval_model(by_hand.val_loader()) and found["b_id"] == 1.5
    assert use(trainer, "test", module)["id"] == 2
    assert use(trainer, "predict", module).tolist() == [1] * 4 + [2] * 4


def test_loaders_that_are_given_besides_are_used(stage: probes.Repeatable) -> None:
    results = stage.begin().train_model(Noted(), probes.numbered(1, first=9), num_epochs=1)
    assert (results["val_epoch_1"]["id"], results["test"]["id"]) == (9, 2)


def test_a_second_call_goes_on_within_the_pass(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(Noted(), num_train_steps=7)
    whole = trainer.logger.column("id")
    trainer, module = stage.begin(), Noted()
    for steps in (2, 4, 7):
        trainer.train_model(module, num_train_steps=steps)
    assert trainer.logger.column("id") == whole
    trainer.train_model(Noted(), num_train_steps=8)  # another one begins with its first batch
    assert trainer.logger.column("id")[-1] == whole[0]


def test_a_run_through_a_module_is_resumed_exactly(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = stage.begin()
    trainer.train_model(Noted(), num_epochs=3)
    whole = probes.learned(trainer)[0]
    saves = xt.ModelCheckpointConfig(monitor=None, every_n_steps=1)
    trainer = stage.begin(saves, folder=tmp_path)
    trainer.train_model(Noted(), num_train_steps=5)
    trainer = stage.begin(saves, folder=tmp_path)
    trainer.train_model(Noted(), num_epochs=3)
    rows = [row for row in probes.all_rows(tmp_path) if row["set"] == "train"]
    assert [row["step"] for row in rows] == [*range(1, 10)]
    zoo.assert_same(trainer.state, whole)


def test_callbacks_find_the_module_from_the_beginning(stage: probes.Repeatable) -> None:
    found: list[Any] = []
    act = lambda trainer, *args: found.append(trainer.callbacks[0].data_module)  # noqa: E731
    trainer, module = stage.begin(probes.acting("on_training_start", act)), Noted()
    trainer.train_model(module, num_train_steps=1)
    assert found == [module]


@pytest.mark.parametrize("phase", LOADERS)
@pytest.mark.parametrize("fails", ["prepare_data", "setup", "loader", "teardown"])
def test_an_error_of_the_module_is_raised_and_it_is_taken_down(
    stage: probes.Repeatable, phase: str, fails: str
) -> None:
    fails = LOADERS[phase][0] if fails == "loader" else fails
    module = Noted(fails)
    with pytest.raises(OSError, match=f"{fails} fails"):
        use(stage.begin(), phase, module)
    taken_down = [call for call in module.calls if call[0] == "teardown"]
    assert taken_down == ([] if fails == "prepare_data" else [("teardown", phase)])
    assert module.is_prepared == (fails != "prepare_data")


def broken_step(trainer: Any, *args: Any) -> None:
    raise KeyError("in a hook")


def test_a_module_is_taken_down_after_an_error_of_the_run(stage: probes.Repeatable) -> None:
    trainer, module = stage.begin(probes.acting("on_training_step", broken_step)), Noted()
    with pytest.raises(KeyError, match="in a hook"):
        trainer.train_model(module, num_epochs=1)
    assert module.calls[-1] == ("teardown", "train")


def test_the_first_error_is_raised_and_the_second_noted(stage: probes.Repeatable) -> None:
    with pytest.raises(OSError, match="setup fails") as caught:
        use(stage.begin(), "test", Noted("setup", "teardown"))
    assert caught.value.__notes__ == ["While taking the data down: OSError: teardown fails"]


@pytest.mark.parametrize("phase", LOADERS)
def test_a_phase_without_data_is_an_error(stage: probes.Repeatable, phase: str) -> None:
    name = LOADERS[phase][0]
    with pytest.raises(LoaderError, match=rf"DataModule\.{name}\(\) gave None.*'{phase}'"):
        use(stage.begin(), phase, xt.DataModule())


def test_predictions_one_by_one_keep_the_module_open(stage: probes.Repeatable) -> None:
    module = Noted()
    ids: Callable[..., Any] = lambda params, apply_fn, batch, rng: batch["ids"]  # noqa: E731
    given = stage.begin().predict(module, ids, collect=False)
    assert module.calls == []
    assert next(given).tolist() == [1] * 4
    assert module.calls[-1] == ("predict_loader",)
    given.close()
    assert module.calls[-1] == ("teardown", "predict")


def test_other_processes_go_without_the_preparation(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtrainer.trainer.data_modules.is_main_process", lambda: False)
    module = Noted()
    use(stage.begin(), "test", module)
    assert module.calls[0] == ("setup", "test") and module.is_prepared

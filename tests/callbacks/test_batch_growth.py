"""How large are the batches of a run whose metric gets no better, and what does the rate do?"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo
from test_lr_monitor import MONITOR, Falling

import xtrainer as xt
from xtrainer.callbacks.batch_growth import planned_size, sizes_to_come
from xtrainer.checkpoint import list_steps
from xtrainer.errors import ConfigError
from xtrainer.loop import StopReason

ROWS = 24
SGD = xt.OptimizerConfig(name="sgd", scheduler=xt.SchedulerConfig(lr=1.0))
PLATEAU: dict[str, Any] = {"monitor": "train/loss", "min_delta": 1e9, "max_batch_size": 12}
"""A metric that never improves after its first value."""


class Counting(Falling):
    """Its steps move ``w`` by the learning rate; it logs the rows of each batch."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        ones = jnp.ones_like(loss)
        return loss, ({"rows": {"value": ones, "count": ones, "log_modes": ["sum"]}}, {})


def make(**kwargs: Any) -> Any:
    """Returns a trainer whose learning rate may be scaled."""
    scaled = xt.BatchSizeGrowthConfig(**PLATEAU, scale_lr="linear")
    kwargs = {"callbacks": [scaled], "batch": data()[0], "optimizer": SGD, **kwargs}
    return probes.traced(trainer_class=Counting, model={}, **kwargs)


def data(rows: int = 4) -> list[dict[str, np.ndarray]]:
    return [{"inputs": np.ones((rows, 1), np.float32)}]


def loader(size: int = 3, rows: int = ROWS, **kwargs: Any) -> xt.ArrayLoader:
    return xt.ArrayLoader(data(rows)[0], size, **kwargs)


@pytest.fixture(scope="module")
def growing() -> probes.Repeatable:
    return probes.Repeatable(make())


def rows_of(trainer: Any) -> list[int]:
    return [int(rows) for rows in trainer.logger.column("rows_sum")]


# What a plan or a rate mean.


@pytest.mark.parametrize(
    ("config", "size", "grown", "expected"),
    [
        ({"max_batch_size": 64}, 16, 0, [32, 64]),
        ({"max_batch_size": 50}, 16, 0, [32, 50]),
        ({"max_batch_size": 16}, 16, 0, []),
        ({"max_batch_size": 8}, 16, 0, []),
        ({"max_batch_size": 10, "rate": 1.5}, 3, 0, [4, 6, 9, 10]),
        ({"max_batch_size": 10, "rate": 1.2}, 3, 0, []),  # less than a row
        ({"max_batch_size": 64, "times": 1}, 4, 0, [8]),
        ({"max_batch_size": 64, "times": 3}, 4, 2, [8]),
        ({"max_batch_size": 64, "times": 3}, 4, 3, []),
        ({"plan": ((10, 8), (20, 16))}, 4, 0, [8, 16]),
        ({"plan": ((10, 8), (20, 16))}, 8, 0, [16]),
    ],
)
def test_the_sizes_to_come(
    config: dict[str, Any], size: int, grown: int, expected: list[int]
) -> None:
    assert sizes_to_come(xt.BatchSizeGrowthConfig(**config), size, grown) == expected


def test_a_plan_counts_from_the_step_it_names() -> None:
    config = xt.BatchSizeGrowthConfig(plan=((10, 8), (20, 16)))
    found = [planned_size(config, step) for step in (0, 9, 10, 19, 20, 99)]
    assert found == [None, None, 8, 8, 16, 16]


def test_settings_that_cannot_be_are_all_named() -> None:
    config = xt.BatchSizeGrowthConfig(
        patience=0, rate=1.0, times=0, scale_lr="square", main_process_only=True  # type: ignore
    )  # fmt: skip
    names = ["patience", "rate", "times", "scale_lr", "main_process_only", "max_batch_size"]
    assert [text.split(":")[0] for text in config.problems()] == names
    for plan in (((5, 8), (5, 16)), ((5, 8), (6, 8)), ((0, 8),), ((5, 0),), ((9, 8), (5, 16))):
        (problem,) = xt.BatchSizeGrowthConfig(plan=plan).problems()
        assert problem.startswith(f"plan: found {plan}")
    (problem,) = xt.BatchSizeGrowthConfig(plan=((5, 8),), max_batch_size=9).problems()
    assert "a plan says it all" in problem
    assert xt.BatchSizeGrowthConfig(max_batch_size=9).problems() == []
    assert xt.BatchSizeGrowthConfig(plan=((5, 8), (6, 16))).problems() == []


def test_a_plan_survives_json() -> None:
    config = xt.BatchSizeGrowthConfig(plan=((10, 8), (20, 16)), scale_lr="sqrt")
    data = json.loads(json.dumps(config.to_dict()))
    assert xt.Config.from_dict(xt.BatchSizeGrowthConfig, data) == config


def by_hand(
    values: Sequence[float], size: int, patience: int, rate: float, largest: int, times: int
) -> list[int]:
    """Returns the size after each value, written down anew as Ludwig's trainer has it."""
    best, waited, grown, found = math.inf, 0, 0, []
    for value in values:
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        if waited >= patience:
            waited = 0
            if size < largest and (times < 0 or grown < times):
                size, grown = min(int(size * rate), largest), grown + 1
        found.append(size)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("patience", "rate", "largest", "times"), [(1, 2.0, 64, -1), (3, 3.0, 100, -1), (2, 1.5, 99, 2)]
)
def test_a_plateau_makes_batches_larger(
    patience: int, rate: float, largest: int, times: int, seed: int
) -> None:
    asked: list[int] = []
    trainer: Any = SimpleNamespace(
        progress=xt.Progress(), has_validation=True, train_batch_size=4, logger=xt.LoggerTool(),
        check_batch_sizes=lambda sizes: None,
        set_batch_size=lambda rows, begun: asked.append(rows),
    )  # fmt: skip
    config = xt.BatchSizeGrowthConfig(
        monitor="loss", patience=patience, rate=rate, max_batch_size=largest, times=times
    )
    callback = config.create(trainer)
    callback.on_training_start()
    values, found = np.random.default_rng(seed).integers(0, 40, 30).tolist(), []
    for number, value in enumerate(values, start=1):
        callback.on_validation_epoch_end({"loss": float(value)}, number, number)
        found.append(callback.size)
    assert found == by_hand(values, 4, patience, rate, largest, times)
    assert asked == [4, *dict.fromkeys(size for size in found if size > 4)]


# Runs.


def test_batches_grow_with_the_pass_after_the_plateau_and_the_rate_with_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = xt.BatchSizeGrowthConfig(**PLATEAU, patience=1, scale_lr="linear")
    trainer = make(
        callbacks=[config, MONITOR], logger=xt.LoggerConfig(log_every_n_steps=1, log_tools=[])
    )
    trainer.logger = probes.Memory()
    with caplog.at_level(logging.INFO, "xtrainer"), zoo.compilations() as compiled:
        trainer.train_model(loader(), num_epochs=4)
    assert trainer.logger.steps() == list(range(1, 8 + 8 + 4 + 2 + 1))
    assert rows_of(trainer) == [3] * 16 + [6] * 4 + [12] * 2
    assert trainer.logger.column("learning_rate") == [1] * 16 + [2] * 4 + [4] * 2
    assert float(trainer.state.params["w"]) == -(16 * 1 + 4 * 2 + 2 * 4)
    # One program for each size, none of which comes as a surprise.
    assert compiled["train_step"] == len(trainer.compiled_train_step.programs) == 3
    assert trainer.compiled_train_step.programs.recompilations == []
    assert trainer.total_steps is None
    said = [text for text in caplog.messages if "rows" in text and "atch" in text]
    assert said == [
        "Batches have 3 rows, and may come to have 6, 12.",
        "BatchSizeGrowth: 'train/loss' has not improved for 1 evaluations. Batches have 6 rows "
        "from the next pass on.",
        "BatchSizeGrowth: 'train/loss' has not improved for 1 evaluations. Batches have 12 rows "
        "from the next pass on.",
    ]


def test_a_size_that_is_asked_for_within_a_pass_waits_for_the_next(
    growing: probes.Repeatable,
) -> None:
    config = xt.BatchSizeGrowthConfig(
        monitor="loss", min_delta=1e9, patience=2, max_batch_size=6, scale_lr="linear"
    )
    # By steps, with an epoch longer than a pass: no hook is called where the pass ends.
    trainer = growing.begin(config, MONITOR, check_val_every_n_steps=2, check_val_every_n_epoch=-1)
    trainer.train_model(loader(), data(), num_train_steps=14, steps_per_epoch=20)
    assert rows_of(trainer) == [3] * 8 + [6] * 6
    assert trainer.logger.column("learning_rate") == [1] * 8 + [2] * 6
    assert trainer.total_steps == 14


def test_rows_that_come_late_have_the_rate_of_their_last_step(growing: probes.Repeatable) -> None:
    config = xt.BatchSizeGrowthConfig(plan=((1, 6), (9, 12)), scale_lr="linear")
    trainer = growing.begin(config, MONITOR, every=7)
    trainer.train_model(loader(), num_train_steps=21, steps_per_epoch=30)
    # 8 batches of 3 rows, 4 of 6, and then 2 in each pass.
    assert list(map(int, trainer.logger.column("rows_sum"))) == [21, 3 + 24 + 24, 7 * 12]
    assert trainer.logger.column("learning_rate") == [1, 4, 4]


def test_a_plan_is_followed_and_the_rate_by_the_square_root(growing: probes.Repeatable) -> None:
    config = xt.BatchSizeGrowthConfig(plan=((8, 6), (9, 12)), scale_lr="sqrt")
    trainer = growing.begin(config, MONITOR)
    trainer.train_model(loader(), num_epochs=3)
    assert rows_of(trainer) == [3] * 8 + [6] * 4 + [12] * 2
    expected = [1] * 8 + [2**0.5] * 4 + [2] * 2
    assert trainer.logger.column("learning_rate") == pytest.approx(expected)
    assert -float(trainer.state.params["w"]) == pytest.approx(8 + 4 * 2**0.5 + 4)


def test_the_rate_stays_where_it_is_not_asked_to_follow(growing: probes.Repeatable) -> None:
    trainer = growing.begin(xt.BatchSizeGrowthConfig(plan=((8, 6),)), MONITOR)
    trainer.train_model(loader(), num_epochs=2)
    assert trainer.logger.column("learning_rate") == [1] * 12


def test_the_last_batch_of_a_pass_may_be_smaller(growing: probes.Repeatable) -> None:
    trainer = growing.begin(xt.BatchSizeGrowthConfig(plan=((1, 6),)))
    trainer.train_model(loader(rows=23), num_epochs=2)
    assert rows_of(trainer) == [3] * 7 + [2] + [6] * 3 + [5]


def test_a_grain_loader_reads_larger_batches_and_goes_on_with_them(
    growing: probes.Repeatable, tmp_path: Path
) -> None:
    source = [{"inputs": np.ones(1, np.float32)}] * ROWS
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    seen = []
    for steps in (10, 14):  # two steps of 6 rows are left of the second pass
        trainer = growing.begin(xt.BatchSizeGrowthConfig(plan=((1, 6), (9, 12))), saving)
        train = xt.GrainLoader(source, 3, shuffle=True)
        trainer.train_model(train, num_train_steps=steps)
        train.close()
        seen += rows_of(trainer)
    assert seen == [3] * 8 + [6] * 4 + [12] * 2
    assert trainer.progress.examples == 3 * ROWS


def test_several_steps_in_a_dispatch_end_where_the_pass_does() -> None:
    config = xt.BatchSizeGrowthConfig(plan=((6, 6),), scale_lr="linear")
    trainer = make(callbacks=[config], steps_per_dispatch=2)
    trainer.logger = probes.Memory()
    trainer.train_model(loader(), num_epochs=3)
    assert trainer.global_step == 8 + 4 + 4
    assert float(trainer.state.params["w"]) == -(8 * 1 + 8 * 2)
    assert trainer.compiled_train_step.programs.recompilations == []


def begin(growing: probes.Repeatable, folder: Path) -> Any:
    growth = xt.BatchSizeGrowthConfig(
        monitor="loss", min_delta=1e9, patience=3, max_batch_size=12, scale_lr="linear"
    )
    saving = xt.ModelCheckpointConfig(log_path=str(folder), max_to_keep=None)
    rhythm = {"check_val_every_n_steps": 2, "check_val_every_n_epoch": -1}
    return growing.begin(growth, saving, MONITOR, **rhythm)


@pytest.fixture(scope="module")
def unbroken(growing: probes.Repeatable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is learned in a run of 19 steps, and the rows of its batches."""
    folder = tmp_path_factory.mktemp("unbroken")
    trainer = begin(growing, folder)
    trainer.train_model(loader(shuffle=True), data(), num_train_steps=19)
    assert list_steps(folder) == [*range(2, 19, 2), 19]
    assert rows_of(trainer) == SEEN
    return probes.learned(trainer), trainer.callbacks[0].state_dict()


SEEN = [3] * 8 + [6] * 8 + [12] * 3
"""Asked for with step 8, which ends a pass, and with step 14, in the midst of one."""


@pytest.mark.parametrize("step", [8, 10, 15, 16])
def test_a_run_that_goes_on_meets_the_same_sizes(
    growing: probes.Repeatable, unbroken: Any, tmp_path: Path, step: int
) -> None:
    begin(growing, tmp_path).train_model(loader(shuffle=True), data(), num_train_steps=step)
    trainer = begin(growing, tmp_path)
    trainer.train_model(loader(shuffle=True), data(), num_train_steps=19)
    assert rows_of(trainer) == SEEN[step:]
    assert trainer.logger.column("learning_rate") == [rows / 3 for rows in SEEN[step:]]
    probes.assert_same_course(probes.learned(trainer), unbroken[0])
    assert trainer.callbacks[0].state_dict() == unbroken[1]


def test_a_run_that_goes_back_meets_the_sizes_of_where_it_goes_to(tmp_path: Path) -> None:
    saving = xt.ModelCheckpointConfig(
        log_path=str(tmp_path), every_n_steps=5, every_n_epochs=99, max_to_keep=None
    )
    trainer = make(
        callbacks=[xt.BatchSizeGrowthConfig(plan=((1, 6),), scale_lr="linear"), saving],
        nonfinite_policy="rollback", max_consecutive_nonfinite=2,
    )  # fmt: skip
    train = loader(shuffle=True, seed=4)
    # Rows of two batches that are neighbours in the second pass, and are not in the first.
    train.arrays["inputs"][train._order(1)[[0, 6]]] = np.nan
    trainer.train_model(train, num_epochs=2)
    (back,) = trainer.progress.rollbacks
    assert (trainer.stop_reason, back.from_step, back.to_step) == (StopReason.FINISHED, 10, 5)
    assert trainer.global_step == 8 + 2  # two batches of the second pass are left out
    assert -float(trainer.state.params["w"]) == (8 - 2) * 1 + 2 * 2
    assert trainer.learning_rate(8) == 1 and trainer.learning_rate(9) == 2
    assert trainer.compiled_train_step.programs.recompilations == []


# What is refused.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (data(3), r"training loader \(list\) has no set_batch_size"),
        (loader(endless=True), "whose pass has no end"),
        (loader(rows=11), "batch_size=12 for 11 rows"),
    ],
    ids=["list", "endless", "few rows"],
)
def test_a_loader_that_cannot_is_refused_before_the_first_step(
    growing: probes.Repeatable, given: Any, message: str
) -> None:
    trainer = growing.begin(xt.BatchSizeGrowthConfig(**PLATEAU))
    with pytest.raises(ConfigError, match=message):
        trainer.train_model(given, num_train_steps=2)
    assert trainer.global_step == 0


def test_all_sizes_that_cannot_be_are_named_at_once() -> None:
    config = xt.BatchSizeGrowthConfig(max_batch_size=30, rate=1.5)
    trainer = make(callbacks=[config], gradient_accumulate_steps=2, mesh=zoo.devices(2))
    with pytest.raises(ConfigError) as error:
        trainer.train_model(loader(8, rows=28), num_epochs=1)
    text = str(error.value)
    assert "found 18 among those to come (12, 18, 27, 30)" in text
    assert all(f"found {size} among" in text for size in (18, 27, 30)) and "found 12" not in text
    assert "multiples of 4 (gradient_accumulate_steps times 2 devices" in text


def test_a_plan_of_smaller_batches_is_refused(growing: probes.Repeatable) -> None:
    trainer = growing.begin(xt.BatchSizeGrowthConfig(plan=((4, 2), (8, 12))))
    with pytest.raises(ConfigError, match=r"found \[2\] among the batch sizes of the plan.*3 rows"):
        trainer.train_model(loader(), num_epochs=1)


def test_its_state_survives_json(growing: probes.Repeatable) -> None:
    trainer = growing.begin(xt.BatchSizeGrowthConfig(**PLATEAU, patience=1, scale_lr="sqrt"))
    trainer.train_model(loader(), num_epochs=3)
    (callback,) = trainer.callbacks
    saved = json.loads(json.dumps(callback.state_dict(), allow_nan=False))
    again = callback.config.create(trainer)
    again.load_state_dict(saved)
    assert again.state_dict() == callback.state_dict()
    assert (again.first_size, again.size, again.grown) == (3, 12, 2)

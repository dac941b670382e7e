"""Does every feature X1 to X27 of the first ancestor work under its public name?

X8, accumulation by scan and by loop, is in ``tests/runs/test_runs_reference.py``.
"""

import dataclasses
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.loop import StopReason

CONFIG_FIELDS = {
    "seed": 0,
    "debug": False,
    "donate_train_state": True,
    "enable_progress_bar": True,
    "gradient_accumulate_steps": 1,
    "gradient_accumulate_scan": True,
    "check_val_every_n_epoch": 1,
    "check_val_every_n_steps": -1,
    "check_for_nan": True,
    "log_grad_norm": True,
    "log_grad_norm_per_param": False,
    "log_param_norm": True,
    "log_param_norm_per_param": False,
    "log_intermediates": False,
    "default_train_log_modes": ["mean"],
    "intermediates_log_modes": ["mean"],
    "logger": xt.LoggerConfig(),
    "callbacks": [],
    "seed_eval": 0,
}
CONFIG_METHODS = {
    "get": ["self", "key", "default"],
    "to_dict": ["self"],
    "from_dict": [
        "config_class",
        "data",
        "strict_classname_parsing",
        "ignore_extensive_attributes",
        "none_to_zero_for_ints",
    ],
}
ATTRIBUTES = [
    "trainer_config",
    "model_config",
    "optimizer_config",
    "exmp_batch",
    "mesh",
    "batch_partition_specs",
    "state",
    "callbacks",
    "first_step",
    "global_step",
    "dataset",
    "log_path",
]
METHODS = {
    "batch_to_input": ["batch"],
    "init_mesh": ["model_config", "mesh"],
    "build_model": ["model_config"],
    "init_logger": ["logger_config"],
    "get_metric_postprocess_fn": [],
    "init_callbacks": ["callback_configs"],
    "init_optimizer": ["optimizer_config"],
    "init_model": ["exmp_input"],
    "init_train_metrics": ["batch"],
    "init_eval_metrics": ["batch"],
    "set_dataset": ["dataset"],
    "get_model_rng": ["rng"],
    "run_model_init": ["exmp_input", "init_rng"],
    "tabulate_params": [],
    "get_num_params": [],
    "create_jitted_functions": [],
    "loss_function": ["params", "apply_fn", "batch", "rng", "train"],
    "create_training_step_function": [],
    "create_evaluation_step_function": [],
    "train_model": [
        "train_loader",
        "val_loader",
        "test_loader",
        "num_epochs",
        "num_train_steps",
        "steps_per_epoch",
    ],
    "test_model": ["test_loader", "apply_callbacks", "epoch_idx"],
    "test_eval_function": ["val_loader"],
    "eval_model": ["data_loader", "mode", "epoch_idx"],
    "_run_model_eval": ["data_loader", "mode", "epoch_idx"],
    "tracker": ["iterator", "kwargs"],
    "log_training_info": [
        "num_epochs",
        "num_train_steps",
        "steps_per_epoch",
        "train_loader",
        "val_loader",
        "test_loader",
    ],
    "on_training_start": [],
    "on_training_end": [],
    "on_training_epoch_start": ["epoch_idx"],
    "on_training_epoch_end": ["train_metrics", "epoch_idx"],
    "on_validation_epoch_start": ["epoch_idx", "step_idx"],
    "on_validation_epoch_end": ["eval_metrics", "epoch_idx", "step_idx"],
    "on_test_epoch_start": ["epoch_idx"],
    "on_test_epoch_end": ["test_metrics", "epoch_idx"],
    "load_model": ["step_idx", "raise_if_not_found"],
    "load_data_loaders": ["step_idx", "train_loader", "val_loader", "test_loader"],
    "restore_model": ["state_dict"],
    "restore_data_loaders": ["state_dict", "train_loader", "val_loader", "test_loader"],
    "load_pretrained_model": [
        "checkpoint_path",
        "step_idx",
        "load_best",
        "load_optimizer",
        "train_loader",
        "val_loader",
        "test_loader",
        "delete_params_before_loading",
    ],
    "load_from_checkpoint": ["checkpoint", "exmp_input", "batch_size"],
}


class Recorder(zoo.Classifier):
    """Notes the ten hooks and marks the metrics it post-processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        super().__init__(*args, **kwargs)

    def get_metric_postprocess_fn(self) -> Any:
        return lambda metrics: {**metrics, "answer": 42.0}

    def on_training_start(self) -> None:
        self.calls.append(("training_start",))

    def on_training_end(self) -> None:
        self.calls.append(("training_end",))

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        self.calls.append(("epoch_start", epoch_idx))

    def on_training_epoch_end(self, train_metrics: dict[str, float], epoch_idx: int) -> None:
        train_metrics["added"] = 1.0
        self.calls.append(("epoch_end", epoch_idx, sorted(train_metrics)))

    def on_validation_epoch_start(self, epoch_idx: int, step_idx: int) -> None:
        self.calls.append(("validation_start", epoch_idx, step_idx))

    def on_validation_epoch_end(self, eval_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        self.calls.append(("validation_end", epoch_idx, step_idx))

    def on_test_epoch_start(self, epoch_idx: int) -> None:
        self.calls.append(("test_start", epoch_idx))

    def on_test_epoch_end(self, test_metrics: Any, epoch_idx: int) -> None:
        self.calls.append(("test_end", epoch_idx))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotesConfig(xt.CallbackConfig):
    """A callback that notes the steps it is called at."""

    def create(self, trainer: Any, data_module: Any = None) -> "Notes":
        return Notes(self, trainer, data_module)


class Notes(xt.Callback):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[int] = []
        self.epochs: list[int] = []

    def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        self.steps.append(step_idx)

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        self.epochs.append(epoch_idx)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Gives one run with most features switched on: 2 epochs of 4 steps, on eight devices."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("xtrainer").addHandler(handler)
    with zoo.compilations() as compiled:
        trainer = zoo.make_trainer(
            Recorder,
            model={"batch_norm": True, "dropout": 0.1, "records": True},
            batch=jax.eval_shape(lambda: zoo.classification_data(16)),
            logger=zoo.file_logger(folder),
            callbacks=[
                xt.ModelCheckpointConfig(monitor="b_loss"),
                xt.LearningRateMonitorConfig(),
                NotesConfig(every_n_steps=3, every_n_epochs=2),
            ],
            check_val_every_n_steps=3,
            log_intermediates=True,
            intermediates_log_modes=["max"],
            log_grad_norm_per_param=True,
            log_param_norm_per_param=True,
        )
        built = dict(compiled)
        val = {"a": zoo.loader(20), "b": zoo.loader(24)}
        results = trainer.train_model(zoo.loader(), val, {"t": zoo.loader(33)}, num_epochs=2)
    logging.getLogger("xtrainer").removeHandler(handler)
    yield SimpleNamespace(
        trainer=trainer, folder=folder, results=results, compiled=compiled, built=built,
        text="\n".join(records),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trainer() -> Any:
    """Gives a trainer on one device that no test trains."""
    return zoo.make_trainer(mesh=zoo.devices(1))


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer on one device that begins again for each test."""
    return probes.Repeatable(zoo.make_trainer(Recorder, mesh=zoo.devices(1)))


@pytest.mark.parametrize(("name", "default"), CONFIG_FIELDS.items())
def test_x1_the_config_has_the_field_and_its_default(name: str, default: Any) -> None:
    assert getattr(xt.TrainerConfig(), name) == default


def test_x1_the_config_can_be_given_by_keyword_only() -> None:
    with pytest.raises(TypeError):
        xt.TrainerConfig(3)  # type: ignore[misc]


@pytest.mark.parametrize(("name", "parameters"), CONFIG_METHODS.items())
def test_x2_the_config_has_the_method(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(xt.Config, name)).parameters) == parameters


def test_x2_a_config_comes_back_from_its_dictionary() -> None:
    config = xt.TrainerConfig(seed=3, callbacks=[xt.LearningRateMonitorConfig(name="rate")])
    assert config.get("seed") == 3 and config.get("sead", "none") == "none"
    assert xt.Config.from_dict(xt.TrainerConfig, config.to_dict()) == config


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_trainer_has_the_attribute(trainer: Any, name: str) -> None:
    assert hasattr(trainer, name)


@pytest.mark.parametrize(("name", "parameters"), METHODS.items())
def test_the_trainer_has_the_method(trainer: Any, name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(trainer, name)).parameters)
    assert found[: len(parameters)] == parameters


def test_the_trainer_is_made_of_what_the_seed_names() -> None:
    parameters = list(inspect.signature(xt.TrainerModule).parameters)
    expected = ["trainer_config", "model_config", "optimizer_config", "batch", "mesh"]
    assert parameters == expected


def test_x3_a_mesh_over_all_devices_is_built_when_none_is_given(run: SimpleNamespace) -> None:
    assert dict(run.trainer.mesh.shape) == {"dp": 8, "fsdp": 1, "pp": 1, "tp": 1}


def test_x3_a_given_mesh_is_used(trainer: Any) -> None:
    assert trainer.mesh.size == 1
    assert trainer.batch_partition_specs == jax.sharding.PartitionSpec(("dp", "fsdp"))


def test_x4_an_example_of_shapes_gives_the_state_of_an_example_of_arrays(trainer: Any) -> None:
    shapes = jax.eval_shape(lambda: zoo.classification_data(16))
    other = zoo.make_trainer(mesh=zoo.devices(1), batch=shapes)
    zoo.assert_same(other.state, trainer.state)


def test_x5_parameters_and_optimizer_state_are_initialized_sharded(trainer: Any) -> None:
    parallel = xt.ParallelConfig(data_axis_size=2, fsdp_axis_size=4, fsdp_min_weight_size=0)
    sharded = zoo.make_trainer(parallel=parallel, optimizer=zoo.optimizer("adam"))
    kernel = sharded.state.params["Dense_0"]["kernel"]
    moment = sharded.state.opt_state["optimizer"].mu["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 2)
    assert moment.sharding == kernel.sharding
    zoo.assert_same(sharded.state.params, trainer.state.params)


def test_x6_metrics_are_known_without_compiling_a_step(trainer: Any) -> None:
    with zoo.compilations() as compiled:
        train, evaluation = trainer.init_train_metrics(), trainer.init_eval_metrics()
    assert train.layout.names == ("loss", "accuracy", "grad_norm", "param_norm")
    assert evaluation.layout.names == ("loss", "accuracy")
    assert not {"train_step", "eval_step"} & set(compiled)


def test_x6_one_step_of_each_kind_is_compiled_in_a_run(run: SimpleNamespace) -> None:
    assert not {"train_step", "eval_step"} & set(run.built)
    assert (run.compiled["train_step"], run.compiled["eval_step"]) == (1, 1)


def test_x7_a_step_donates_the_state(stage: probes.Repeatable) -> None:
    fresh = stage.begin()
    old = fresh.state
    fresh.train_model(zoo.loader(16), num_train_steps=1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))


def test_x7_without_donation_the_old_state_stays_usable() -> None:
    fresh = zoo.make_trainer(mesh=zoo.devices(1), donate_train_state=False)
    old, before = fresh.state, zoo.host(fresh.state)
    fresh.train_model(zoo.loader(16), num_train_steps=1)
    zoo.assert_same(old, before)


def test_x7_debug_compiles_no_step_and_gives_the_same_parameters(
    stage: probes.Repeatable,
) -> None:
    debugged = zoo.make_trainer(mesh=zoo.devices(1), debug=True, log_param_norm=False)
    with zoo.compilations() as compiled:
        debugged.train_model(zoo.loader(16), num_epochs=1)
    assert not {"train_step", "eval_step"} & set(compiled)
    fresh = stage.begin()
    fresh.train_model(zoo.loader(16), num_epochs=1)
    zoo.assert_close(debugged.state.params, fresh.state.params)


def test_x9_norms_of_all_and_of_each_parameter_are_logged(run: SimpleNamespace) -> None:
    row = zoo.rows_of(run.folder, "train")[4]
    for kind in ("grad_norm", "param_norm"):
        parts = {k: v for k, v in row.items() if k.startswith(f"{kind}/")}
        assert set(parts) == {
            f"{kind}/{layer}/{name}_mean"
            for layer, names in {
                "Dense_0": ("kernel", "bias"),
                "Dense_1": ("kernel", "bias"),
                "BatchNorm_0": ("scale", "bias"),
            }.items()
            for name in names
        }
        total = np.sqrt(sum(value**2 for value in parts.values()))
        assert row[f"{kind}_mean"] == pytest.approx(total, rel=1e-5)


def test_x10_what_the_model_sows_is_logged_with_its_own_modes(run: SimpleNamespace) -> None:
    row = zoo.rows_of(run.folder, "train")[4]
    assert row["activation_max"] > 0 and "activation_mean" not in row


def test_x11_validation_logs_means_under_bare_names(run: SimpleNamespace) -> None:
    assert set(zoo.rows_of(run.folder, "val")[3]) == {
        "a_loss", "a_accuracy", "b_loss", "b_accuracy", "answer"
    }  # fmt: skip


def test_x12_validations_by_epoch_and_by_step_are_done_once_at_a_step(
    run: SimpleNamespace,
) -> None:
    assert list(zoo.rows_of(run.folder, "val")) == [3, 4, 6, 8]
    keys = {"val_step_3", "val_epoch_1", "val_step_6", "val_epoch_2", "test"}
    assert set(run.results) == keys


def test_x12_both_kinds_of_validation_at_one_step_share_one_evaluation(
    stage: probes.Repeatable,
) -> None:
    fresh = stage.begin(check_val_every_n_steps=2)
    fresh.calls.clear()
    results = fresh.train_model(zoo.loader(32), zoo.loader(16), num_train_steps=4)
    assert results["val_step_2"] == results["val_epoch_1"]
    assert [call for call in fresh.calls if call[0] == "validation_end"] == [
        ("validation_end", 1, 2), ("validation_end", 2, 4)
    ]  # fmt: skip


def test_x12_steps_per_epoch_ends_the_epochs_of_an_endless_loader(
    stage: probes.Repeatable,
) -> None:
    fresh = stage.begin()
    fresh.calls.clear()
    fresh.train_model(zoo.loader(endless=True), num_epochs=2, steps_per_epoch=3)
    assert fresh.global_step == 6
    assert [c[1] for c in fresh.calls if c[0] == "epoch_end"] == [1, 2]


def test_x13_metrics_of_several_sets_carry_their_names(run: SimpleNamespace) -> None:
    assert {"a_loss", "b_loss"} < set(run.results["val_epoch_2"])
    assert set(run.results["test"]) == {"t_loss", "t_accuracy", "answer"}


def test_x14_the_metrics_of_every_validation_and_of_the_test_are_returned(
    run: SimpleNamespace,
) -> None:
    logged = {step: row["b_loss"] for step, row in zoo.rows_of(run.folder, "val").items()}
    returned = [run.results[k]["b_loss"] for k in ("val_step_3", "val_epoch_1", "val_step_6")]
    assert returned == [logged[3], logged[4], logged[6]]
    assert zoo.rows_of(run.folder, "test")[8] == run.results["test"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_x15_a_step_that_is_not_finite_stops_training(
    stage: probes.Repeatable, value: float
) -> None:
    data = zoo.classification_data(64)
    data.inputs[40] = value  # in the third batch
    fresh = stage.begin()
    fresh.train_model(xt.ArrayLoader(data, batch_size=16), num_epochs=1)
    assert fresh.stop_reason is StopReason.NONFINITE
    assert "Step 3 " in fresh.stop_detail and fresh.global_step == 2


def test_x16_trying_the_evaluation_takes_no_batch_from_the_loader(trainer: Any) -> None:
    batches = list(zoo.loader(48))
    one_shot = iter(batches)
    trainer.test_eval_function(one_shot)
    trainer.test_eval_function(one_shot)
    expected = trainer.eval_model(batches, "test", 1)
    assert trainer.eval_model(one_shot, "val", 1) == expected


def test_x17_the_tracker_passes_everything_on_and_draws_nothing_where_bars_are_off(
    trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(trainer.tracker(range(3), desc="bar")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_x17_a_bar_is_drawn_on_a_terminal(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    fresh = stage.begin(enable_progress_bar=True)
    fresh.train_model(zoo.loader(32), num_epochs=1)
    assert "train: 100%" in terminal.getvalue()


def test_x17_other_processes_draw_no_bar(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtrainer.trainer.module.is_main_process", lambda: False)
    fresh = stage.begin(enable_progress_bar=True)
    assert fresh.tracker(range(3)).disable


def test_x18_model_data_and_devices_are_said_at_the_start(run: SimpleNamespace) -> None:
    for fact in ("MLP", "parameters", "8 x cpu", "dp=8", "batches per pass", "steps"):
        assert fact in run.text


def test_x19_the_hooks_of_the_trainer_are_called_in_order(run: SimpleNamespace) -> None:
    names = ["accuracy", "activation", "added", "answer", "epoch_time_s", "loss"]
    epoch_metrics = [call[2] for call in run.trainer.calls if call[0] == "epoch_end"]
    assert all(set(names) <= set(found) for found in epoch_metrics)
    assert [call[:2] if call[0] == "epoch_end" else call for call in run.trainer.calls] == [
        ("training_start",),
        ("epoch_start", 1),
        ("validation_start", 1, 3),
        ("validation_end", 1, 3),
        ("epoch_end", 1),
        ("validation_start", 1, 4),
        ("validation_end", 1, 4),
        ("epoch_start", 2),
        ("validation_start", 2, 6),
        ("validation_end", 2, 6),
        ("epoch_end", 2),
        ("validation_start", 2, 8),
        ("validation_end", 2, 8),
        ("training_end",),
        ("test_start", 2),
        ("test_end", 2),
    ]


def test_x19_callbacks_are_called_as_often_as_their_config_says(run: SimpleNamespace) -> None:
    notes = next(c for c in run.trainer.callbacks if isinstance(c, Notes))
    assert (notes.steps, notes.epochs) == ([3, 6], [2])


def test_x19_a_callback_of_the_main_process_is_not_made_elsewhere(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtrainer.callbacks.base.is_main_process", lambda: False)
    fresh = stage.begin()
    fresh.init_callbacks([NotesConfig(main_process_only=True), NotesConfig()])
    assert len(fresh.callbacks) == 1


def test_x19_what_a_hook_adds_to_the_metrics_is_logged(run: SimpleNamespace) -> None:
    assert zoo.rows_of(run.folder, "train_epoch")[4]["added"] == 1.0


def test_x20_every_row_of_metrics_is_post_processed(run: SimpleNamespace) -> None:
    rows = xt.read_metrics(run.folder)
    assert {row["set"] for row in rows} == {"train", "train_epoch", "val", "test"}
    assert all(row["metrics"]["answer"] == 42.0 for row in rows)


def test_x21_each_process_has_a_command_line_log(run: SimpleNamespace) -> None:
    assert "All requested epochs or steps are done." in (run.folder / "output_0.log").read_text()


def test_x22_the_learning_rate_is_in_every_row(run: SimpleNamespace) -> None:
    rows = zoo.rows_of(run.folder, "train")
    assert [row["learning_rate"] for row in rows.values()] == pytest.approx([0.1] * 8)


def test_x22_the_best_and_the_newest_checkpoint_are_kept(run: SimpleNamespace) -> None:
    losses = {step: row["b_loss"] for step, row in zoo.rows_of(run.folder, "val").items()}
    best = min(losses, key=losses.get)  # type: ignore[arg-type]
    assert set(list_steps(run.folder / "checkpoints")) == {best, *sorted(losses)[-2:]}


def test_x22_the_profiler_writes_a_trace(stage: probes.Repeatable, tmp_path: Path) -> None:
    profiler = xt.JaxProfilerConfig(profile_first_step=2, profile_n_steps=1, log_path=str(tmp_path))
    fresh = stage.begin(profiler)
    fresh.train_model(zoo.loader(64), num_epochs=1)
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_x22_an_extended_evaluation_adds_its_metrics_to_those_of_the_validation(
    stage: probes.Repeatable,
) -> None:
    fresh = stage.begin(MarginConfig(prefix="more"))
    fresh.set_dataset({"x": zoo.loader(24)})
    results = fresh.train_model(zoo.loader(32), zoo.loader(16), num_epochs=1)
    found = results["val_epoch_1"]
    expected = fresh.eval_model(zoo.loader(24))["loss"] + 1.0
    assert found["more_x_loss"] == pytest.approx(expected)


def test_x23_a_run_is_loaded_from_its_own_folder(run: SimpleNamespace) -> None:
    config = run.trainer.trainer_config
    again = Recorder(
        config, run.trainer.model_config, run.trainer.optimizer_config, run.trainer.exmp_batch
    )
    assert again.load_model() == 8
    zoo.assert_same(again.state, run.trainer.state)


def test_x24_a_trainer_is_rebuilt_from_the_folder_of_its_run(run: SimpleNamespace) -> None:
    again = Recorder.load_from_checkpoint(run.folder)
    assert again.test_model({"t": zoo.loader(33)}) == run.results["test"]
    assert again.trainer_config.seed == run.trainer.trainer_config.seed
    assert again.optimizer_config == run.trainer.optimizer_config


def test_x25_parameters_are_counted_and_listed(trainer: Any) -> None:
    assert trainer.get_num_params() == 4 * 8 + 8 + 8 * 3 + 3
    table = trainer.tabulate_params()
    assert "Dense_0/kernel" in table and "4×8" in table and "67" in table


def test_x26_the_seed_of_evaluation_is_separate(trainer: Any) -> None:
    losses = []
    for seed, seed_eval in ((0, 1), (1, 1), (1, 0)):
        fresh = zoo.make_trainer(
            NoisyEvaluation, mesh=zoo.devices(1), seed=seed, seed_eval=seed_eval
        )
        fresh.state = trainer.state
        losses.append(fresh.eval_model(zoo.loader(16))["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_x27_a_dataset_is_shared_with_the_callbacks(stage: probes.Repeatable) -> None:
    fresh = stage.begin(NotesConfig(), NotesConfig())
    dataset = object()
    fresh.set_dataset(dataset)
    assert fresh.dataset is dataset
    assert [callback.dataset for callback in fresh.callbacks] == [dataset, dataset]


class NoisyEvaluation(zoo.Classifier):
    """Adds noise to its loss, in evaluation too."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, rest = super().loss_function(params, apply_fn, batch, rng, train)
        return loss + jax.random.normal(rng, loss.shape), rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarginConfig(xt.ExtendedEvaluationConfig):
    """Evaluates the loss plus one."""

    def create(self, trainer: Any, data_module: Any = None) -> "Margin":
        return Margin(self, trainer, data_module)


class Margin(xt.ExtendedEvaluation):
    def loss_function(self, params, apply_fn, batch, rng, train=False):  # type: ignore[override]
        loss, _ = zoo.Classifier.loss_function(self, params, apply_fn, batch, rng, train)  # type: ignore[arg-type]
        return loss + 1.0, ({}, {})

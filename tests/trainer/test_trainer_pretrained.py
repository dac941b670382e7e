"""Which arrays of another model become which of ours, and what is told of the others?"""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import CheckpointError, ConfigError
from xtrainer.trainer.pretrained import compare


class Net(nn.Module):
    """Two layers whose names and width can be chosen."""

    body: str = "body"
    head: str = "head"
    classes: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Returns logits."""
        x = nn.relu(nn.Dense(8, name=self.body)(x))
        return nn.Dense(self.classes, name=self.head)(x)


def make(dtype: str = "float32", **model: Any) -> Any:
    config = xt.ModelConfig(model_class=Net, model_config=model)
    base = zoo.make_trainer(mesh=zoo.devices(1))
    precision = xt.PrecisionConfig(param_dtype=dtype)
    trainer_config = dataclasses.replace(base.trainer_config, seed=9, precision=precision)
    parts = (trainer_config, config, base.optimizer_config, base.exmp_batch, base.mesh)
    return type(base)(*parts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Gives a finished run of the model as it is by default."""
    folder = tmp_path_factory.mktemp("pretrained")
    base = zoo.make_trainer(
        mesh=zoo.devices(1), logger=zoo.file_logger(folder), callbacks=[xt.ModelCheckpointConfig()]
    )
    config = xt.ModelConfig(model_class=Net)
    trainer = type(base)(
        base.trainer_config, config, base.optimizer_config, base.exmp_batch, base.mesh
    )
    trainer.train_model(zoo.loader(32), num_epochs=1)
    return SimpleNamespace(folder=folder, params=zoo.host(trainer.state.params))


def test_renamed_parameters_are_found(run: SimpleNamespace) -> None:
    trainer = make(body="backbone")
    renamed = xt.PretrainedMap(rename=[("^params/body/", "params/backbone/")])
    assert trainer.load_pretrained_model(run.folder, param_map=renamed) == 2
    zoo.assert_same(trainer.state.params["backbone"], run.params["body"])
    zoo.assert_same(trainer.state.params["head"], run.params["head"])
    assert trainer.global_step == int(trainer.state.step) == 0
    trainer.train_model(zoo.loader(32), num_epochs=1)  # what was loaded can be donated


def test_another_head_stays_as_it_was_initialized(run: SimpleNamespace) -> None:
    trainer = make(classes=5, head="new")
    before = zoo.host(trainer.state.params)
    param_map = xt.PretrainedMap(skip=["params/new/*"], ignore=["params/head/*"])
    trainer.load_pretrained_model(run.folder, param_map=param_map)
    zoo.assert_same(trainer.state.params["new"], before["new"])
    zoo.assert_same(trainer.state.params["body"], run.params["body"])


def test_what_no_map_covers_is_told_in_one_table_and_changes_nothing(run: SimpleNamespace) -> None:
    trainer = make(classes=5, body="other", dtype="float16")
    before = zoo.host(trainer.state.params)
    with pytest.raises(CheckpointError, match="found 6 arrays that do not fit") as caught:
        trainer.load_pretrained_model(run.folder, param_map=xt.PretrainedMap())
    text = str(caught.value)
    assert "2 different shape, 2 missing, 2 unexpected" in text
    for line in ("params/other/kernel", "params/body/kernel", "float16[8, 5]"):
        assert line in text
    zoo.assert_same(trainer.state.params, before)


def test_a_dtype_is_cast_where_it_is_said(run: SimpleNamespace) -> None:
    trainer = make(dtype="bfloat16")
    with pytest.raises(CheckpointError, match="4 different dtype"):
        trainer.load_pretrained_model(run.folder, param_map=xt.PretrainedMap())
    with pytest.raises(CheckpointError, match="dtype float32 in the checkpoint"):
        trainer.load_pretrained_model(run.folder, load_optimizer=False)
    trainer.load_pretrained_model(run.folder, param_map=xt.PretrainedMap(cast=["params/*"]))
    found = jax.tree.map(lambda x: np.asarray(x, np.float32), trainer.state.params)
    expected = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16).astype(np.float32), run.params)
    zoo.assert_same(found, expected)
    assert trainer.state.params["body"]["kernel"].dtype == jnp.bfloat16


def test_a_dry_run_shows_the_table_and_changes_nothing(
    run: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(classes=5)
    before = zoo.host(trainer.state.params)
    with caplog.at_level(logging.INFO):
        report = trainer.load_pretrained_model(run.folder, dry_run=True)
    assert "Would load" in caplog.text and "2 loaded, 2 different shape" in caplog.text
    assert repr(report) == "PretrainedReport(2 loaded, 2 different shape)"
    assert str(report) == report.table() and "head/kernel" in str(report)
    zoo.assert_same(trainer.state.params, before)


def test_what_is_to_stay_as_loaded_must_be_frozen_in_the_optimizer(run: SimpleNamespace) -> None:
    param_map = xt.PretrainedMap(freeze=["params/body/*"])
    with pytest.raises(CheckpointError, match=r"OptimizerConfig.freeze[^|]*2 not frozen, 2 loaded"):
        make().load_pretrained_model(run.folder, param_map=param_map)
    base = make()
    config = zoo.optimizer(freeze=("body",))
    parts = (base.trainer_config, base.model_config, config, base.exmp_batch, base.mesh)
    trainer = type(base)(*parts)
    trainer.load_pretrained_model(run.folder, param_map=param_map)
    trainer.train_model(zoo.loader(32), num_epochs=1)
    zoo.assert_same(trainer.state.params["body"], run.params["body"])
    head = np.asarray(trainer.state.params["head"]["kernel"])
    assert not np.array_equal(head, run.params["head"]["kernel"])


def test_the_run_that_is_read_stays_as_it_is(run: SimpleNamespace) -> None:
    before = zoo.files_in(run.folder)
    make().load_pretrained_model(run.folder, param_map=xt.PretrainedMap())
    assert zoo.files_in(run.folder) == before


def leaf(*shape: int, dtype: str = "float32") -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def saved(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype}


def test_a_reshape_keeps_the_number_of_elements() -> None:
    param_map = xt.PretrainedMap(reshape=["params/*"])
    report = compare({"params/w": saved(4, 6)}, {"params/w": leaf(2, 12)}, param_map)
    assert [(row.result, row.note) for row in report.rows] == [("loaded", "reshaped")]
    report = compare({"params/w": saved(4, 6)}, {"params/w": leaf(5, 5)}, param_map)
    assert [row.result for row in report.problems] == ["different shape"]


def test_reshaped_arrays_hold_the_same_numbers(run: SimpleNamespace, tmp_path: Path) -> None:
    class Wide(nn.Module):
        """The first layer's kernel as one long row."""

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
            flat = self.param("flat", nn.initializers.zeros, (1, x.shape[-1] * 8))
            return x @ flat.reshape(x.shape[-1], 8)

    base = make()
    config = xt.ModelConfig(model_class=Wide)
    parts = (base.trainer_config, config, base.optimizer_config, base.exmp_batch, base.mesh)
    trainer = type(base)(*parts)
    param_map = xt.PretrainedMap(
        rename=[("^params/body/kernel$", "params/flat")], reshape=["params/flat"], ignore=["*"]
    )
    trainer.load_pretrained_model(run.folder, param_map=param_map)
    expected = np.asarray(run.params["body"]["kernel"]).reshape(1, -1)
    np.testing.assert_array_equal(np.asarray(trainer.state.params["flat"]), expected)


def test_in_a_notebook_the_table_is_not_shown_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"params/kernel": jax.ShapeDtypeStruct((2,), "float32")}
    report = compare({}, model, xt.PretrainedMap(skip=["params/kernel"]))
    shown: list[Any] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *parts: shown.append(parts))
    assert "params/kernel" in report.table()
    assert shown == []


def test_two_paths_that_become_one_are_refused() -> None:
    param_map = xt.PretrainedMap(rename=[("/[ab]$", "/c")])
    leaves = {"params/a": saved(1), "params/b": saved(1)}
    with pytest.raises(CheckpointError, match="params/a and params/b both become params/c"):
        compare(leaves, {"params/c": leaf(1)}, param_map)


def test_a_pattern_that_cannot_be_read_is_told() -> None:
    with pytest.raises(ConfigError, match=r"rename: found '\(', expected a regular expression"):
        xt.check_configs(param_map=xt.PretrainedMap(rename=[("(", "")]))


def test_a_map_survives_json() -> None:
    param_map = xt.PretrainedMap(rename=[("a", "b")], skip=["c"])
    assert xt.Config.from_dict(xt.PretrainedMap, param_map.to_dict()) == param_map

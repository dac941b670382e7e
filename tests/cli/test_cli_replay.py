"""Does ``xtrainer replay`` name the layer in which a run has gone wrong?"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import zoo
from experiment_zoo import SMALL, write_experiment

import xtrainer as xt
from xtrainer.cli.experiment import load_experiment
from xtrainer.cli.main import main
from xtrainer.trainer.box_files import read_records

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
PLANTED = f"""
import sys

sys.path.insert(0, {str(EXPERIMENTS)!r})

import byte_lm
import flax.linen as nn
import jax
import jax.numpy as jnp
import xtrainer as xt


def get_config():
    config = byte_lm.get_config()
    config.plant, config.layer = "", 0
    return config


class Planted(byte_lm.ByteLM):
    plant, layer = "", 0

    def loss_function(self, params, apply_fn, batch, rng, train=True):
        def spoil(call, args, kwargs, context):
            result = call(*args, **kwargs)
            name = "/".join(context.module.path)
            if self.plant == "activation" and name == f"block_{{self.layer}}/attention":
                result = result / jnp.where(batch["mask"].max() > 1.5, 0.0, 1.0)
            return result

        with nn.intercept_methods(spoil):
            return super().loss_function(params, apply_fn, batch, rng, train)

    def on_training_step(self, metrics, epoch, step):
        if self.plant == "parameter" and step == 3:
            block = self.state.params[f"block_{{self.layer}}"]
            block["up"]["kernel"] = block["up"]["kernel"].at[2, 1].set(jnp.nan)


class Marked(byte_lm.RandomWindows):
    def _endless(self):
        for batch in super()._endless():
            if self.position == 5:
                batch["mask"][0, 0] = 2.0
            yield batch


def make_trainer(config, mesh=None):
    Planted.plant, Planted.layer = config.plant, config.layer
    shapes = (config.data.batch_size, config.data.context_length)
    dtypes = {{"inputs": "uint8", "targets": "uint8", "mask": "float32"}}
    return Planted(
        xt.Config.from_config_dict(xt.TrainerConfig, config.trainer),
        xt.Config.from_config_dict(xt.ModelConfig, config.model),
        xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer),
        {{name: jax.ShapeDtypeStruct(shapes, dtype) for name, dtype in dtypes.items()}},
        mesh,
    )


def run(config):
    data = config.data
    stream = byte_lm.load_splits(data.root)["train"]
    loader = Marked(stream, data.batch_size, data.context_length, data.seed)
    trainer = make_trainer(config)
    steps, resume = config.num_train_steps, config.get("resume", "auto")
    trainer.train_model(loader, num_train_steps=steps, resume=resume)
    return trainer
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder of sources in which every set has a file."""
    return zoo.write_sources(tmp_path_factory.mktemp("text"), functions=10)


def byte_lm_arguments(text: Path, *more: str) -> list[str]:
    return [
        "--config.num_train_steps=6",
        "--config.model.model_config.num_layers=2",
        "--config.model.model_config.embed_dim=16",
        "--config.model.model_config.num_heads=2",
        "--config.model.model_config.mlp_dim=16",
        "--config.model.model_config.context_length=8",
        "--config.data.batch_size=8",
        "--config.trainer.logger.log_every_n_steps=1",
        f"--config.data.root={text}",
        *more,
    ]


def train(path: str, folder: Path, arguments: list[str], saves: int = 3) -> Any:
    """Runs an experiment in this process; returns what it does."""
    experiment = load_experiment(path)
    where = f"--config.trainer.logger.log_path={folder}"
    config = xt.parse_config(experiment.get_config(), [*arguments, where])
    saving = xt.ModelCheckpointConfig(every_n_steps=saves, max_to_keep=None).to_dict()
    with config.unlocked():
        config.trainer.callbacks = [saving]
    assert experiment.run is not None
    return experiment.run(config)


def replay(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["replay", *arguments])
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


@pytest.mark.parametrize("layer", [1])
def test_an_activation_planted_in_a_layer_of_the_byte_lm_is_named_as_that_layer(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], layer: int
) -> None:
    path = write_experiment(tmp_path, PLANTED)
    more = byte_lm_arguments(text, "--config.plant=activation", f"--config.layer={layer}")
    run = tmp_path / "run"
    trainer = train(path, run, more)
    assert trainer.stop_reason is xt.StopReason.NONFINITE
    before = zoo.files_in(run)
    code, said = replay(capsys, str(run), "--experiment", path, *more)
    assert code == 0
    assert re.search(r"│ 5 │ step 4 │ from the record │ nan │", said)
    assert (
        "The first non-finite value appears in the forward pass, in module "
        f"Transformer/block_{layer}/attention, primitive div, output (8, 8, 16) float32:"
    ) in said
    assert zoo.files_in(run) == before


@pytest.mark.parametrize("layer", [0])
def test_a_parameter_planted_in_a_layer_of_the_byte_lm_is_named_as_that_layer(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], layer: int
) -> None:
    path = write_experiment(tmp_path, PLANTED)
    more = byte_lm_arguments(text, "--config.plant=parameter", f"--config.layer={layer}")
    train(path, tmp_path / "run", more)
    code, said = replay(capsys, str(tmp_path / "run"), "--experiment", path, *more)
    assert code == 0
    assert re.search(r"│ 4 │ step 3 │ from the record │ nan │", said)
    assert (
        "The first non-finite value is in what the step is given: "
        f"params/block_{layer}/up/kernel, first at [2, 1]. It reaches the forward pass."
    ) in said


# A smaller model says the rest.

SLOPED = SMALL.replace(
    '"data": {"batch_size": 16}', '"resume": "auto", "data": {"batch_size": 16, "seed": 0}'
)
SLOPED += """

import jax.numpy as jnp
import numpy as np


@jax.custom_jvp
def steep(x, flag):
    return x


@steep.defjvp
def slope(primals, tangents):
    x, flag = primals
    return x, tangents[0] * jnp.where(flag, jnp.nan, 1.0)


class Regression(xt.TrainerModule):
    model_class = Net

    def loss_function(self, params, apply_fn, batch, rng, train=True):
        out = apply_fn({"params": params}, batch["inputs"])
        return (steep(out, batch["inputs"][0, 0] == 9.0) ** 2).mean(-1), ({}, {})


def run(config):
    rng = np.random.default_rng(config.data.seed)
    batches = [rng.normal(size=(16, 8)).astype(np.float32) for _ in range(8)]
    batches[2][0, 0] = batches[5][0, 0] = 9.0
    trainer = make_trainer(config)
    trainer.train_model([{"inputs": x} for x in batches], num_epochs=1, resume=config.resume)
    return trainer
"""
SKIPPING = [
    "--config.trainer.nonfinite_policy=skip",
    "--config.trainer.black_box_max_bytes=0",
    "--config.trainer.gradient_accumulate_steps=2",
]


@pytest.fixture(scope="module")
def sloped(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Gives an experiment and a run of it that has skipped steps 3 and 6."""
    folder = tmp_path_factory.mktemp("sloped")
    path = write_experiment(folder, SLOPED)
    trainer = train(path, folder / "run", SKIPPING)
    assert (trainer.global_step, trainer.progress.skipped) == (8, 2)
    assert sorted(read_records(folder / "run")) == [3, 6]
    return path, folder / "run"


@pytest.mark.parametrize(
    ("more", "row"), [([], "6 │ step 3"), (["--step", "3"], "3 │ none, from the beginning")]
)
def test_a_gradient_of_a_skipped_step_is_found_with_a_batch_from_the_loader(
    sloped: tuple[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], row: str
) -> None:
    path, run = sloped
    code, said = replay(capsys, str(run), "--experiment", path, *more, *SKIPPING)
    assert code == 0
    assert f"│ {row} │ from the loader │" in said
    found = (
        r"appears in the backward pass of micro-batch 0, in no module, primitive \w+, output \(\)"
    )
    assert re.search(found, said) and "a constant that is not finite" in said
    assert "│ Dense_0/kernel │ nan │" in said
    assert "another batch" not in said


def test_other_data_than_those_of_the_run_are_told(
    sloped: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = sloped
    other = [*SKIPPING, "--config.data.seed=1"]
    code, said = replay(capsys, str(run), "--experiment", path, *other)
    assert code == 0
    assert "The loader has given another batch than the one that was recorded." in said


def test_a_step_that_is_finite_is_told_so(
    sloped: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = sloped
    code, said = replay(capsys, str(run), "--experiment", path, "--step", "5", *SKIPPING)
    assert code == 1
    assert "The step is finite when it is replayed." in said


def test_a_step_that_is_not_reached_is_told_so(
    sloped: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = sloped
    code, said = replay(capsys, str(run), "--experiment", path, "--step", "99", *SKIPPING)
    assert code == 1
    assert "Step 99 cannot be replayed: the experiment has ended before it." in said


def test_without_checkpoints_the_run_is_replayed_from_its_beginning(
    sloped: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = sloped
    shutil.copytree(run, tmp_path / "run", ignore=lambda *_: {"checkpoints"})
    code, said = replay(capsys, str(tmp_path / "run"), "--experiment", path, *SKIPPING)
    assert code == 0
    assert "│ 6 │ none, from the beginning │" in said


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(
    sloped: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = sloped
    shutil.copytree(run, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "3"
    for file in [file for file in step.rglob("*") if file.is_file() and file.stat().st_size > 99]:
        file.write_bytes(file.read_bytes()[:-9] + b"damaged!!")
    before = zoo.files_in(tmp_path / "run")
    code, said = replay(capsys, str(tmp_path / "run"), "--experiment", path, *SKIPPING)
    assert code == 0
    assert "│ 6 │ none, from the beginning │" in said
    assert zoo.files_in(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("folder", "more", "message"),
    [
        ("nowhere", [], "Found no folder"),
        (".", [], "found no record of a refused step"),
        (".", ["--step", "0"], "--step: found 0, expected a number >= 1"),
        (".", ["--step", "1", "--config.nothing=1"], "nothing"),
    ],
)
def test_what_cannot_be_followed_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    more: list[str],
    message: str,
) -> None:
    path = write_experiment(tmp_path, SLOPED)
    code, said = replay(capsys, str(tmp_path / folder), "--experiment", path, *more)
    assert (code, message in said) == (2, True)


def test_an_experiment_that_cannot_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(tmp_path, SMALL)
    code, said = replay(capsys, str(tmp_path), "--experiment", path)
    assert code == 2 and "found no function run(config)" in said


def test_a_damaged_record_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_experiment(tmp_path, SLOPED)
    folder = tmp_path / "run" / "black_box" / "step_3"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"format": 7, "step": 3}))
    code, said = replay(capsys, str(tmp_path / "run"), "--experiment", path)
    assert code == 2 and "found format 7 of step 3" in said

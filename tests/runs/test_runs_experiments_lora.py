"""LoRA, shrunk: what is trained, what is kept, and are merged weights the same model?"""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import byte_lm
import evaluate
import jax
import lora
import numpy as np
import pytest
from lm.lora import BASE

import xtrainer as xt
from xtrainer.checkpoint import read_meta
from xtrainer.tree import flatten_with_paths, num_elements

SMALL = [
    "--config.num_train_steps=4",
    "--config.base_steps=4",
    "--config.model.model_config.rank=2",
    "--config.model.model_config.base.num_layers=1",
    "--config.model.model_config.base.embed_dim=32",
    "--config.model.model_config.base.mlp_dim=32",
    "--config.model.model_config.base.context_length=16",
    "--config.data.eval_bytes=1024",
    "--config.trainer.logger.log_every_n_steps=2",
    "--config.trainer.enable_progress_bar=False",
]


def config_of(run: Path, *more: str) -> Any:
    arguments = [*SMALL, f"--config.trainer.logger.log_path={run}", *more]
    return xt.parse_config(lora.get_config(), arguments)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def short(config: Any) -> Any:
    """Returns the config without validation, so that nothing is compiled for one."""
    with config.unlocked():
        config.trainer.callbacks = [xt.ModelCheckpointConfig(every_n_steps=4).to_dict()]
        config.trainer.check_val_every_n_steps = -1
    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives a trained model of code, and one that was fine-tuned from it."""
    folder = tmp_path_factory.mktemp("lora")
    config = config_of(folder / "run")
    first = byte_lm.make_trainer(lora.base_config(config, str(folder / "base")))
    loaders = lora.make_loaders(config.data)
    first.train_model(loaders["train"], loaders["val"], num_train_steps=4)
    before = hashes(folder / "base")
    trainer = lora.make_trainer(short(config))
    lora.load_base(trainer, folder / "base")
    trainer.train_model(loaders["train"], num_train_steps=8)
    return SimpleNamespace(
        run=folder / "run", base=first, before=before, trainer=trainer, folder=folder / "base"
    )


def test_the_frozen_parameters_are_those_of_the_base_bit_for_bit(done: Any) -> None:
    base = done.base.state.params
    kept = flatten_with_paths(done.trainer.state.params[BASE])
    wanted = flatten_with_paths(base)
    assert kept.keys() == wanted.keys()
    assert all(np.array_equal(kept[path], wanted[path]) for path in wanted)


def test_the_adapters_have_moved(done: Any) -> None:
    adapters = {n: p for n, p in done.trainer.state.params.items() if n != BASE}
    layers = ("attention-qkv", "attention-out", "up", "down")
    assert set(adapters) == {*(f"block_0-{name}" for name in layers), "head"}
    # Both matrices of each: the upper one begins at zero.
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(adapters))


def test_the_optimizer_keeps_moments_of_the_adapters_alone(done: Any) -> None:
    step = xt.find_last_checkpoint(done.run)
    assert step is not None
    leaves = read_meta(step)["leaves"]
    moments = [path for path in leaves if path.startswith("opt_state/") and "/mu/" in path]
    adapters = {n: p for n, p in done.trainer.state.params.items() if n != BASE}
    assert not any(f"/{BASE}/" in path for path in moments)
    sizes = [int(np.prod(leaves[path]["shape"])) for path in moments]
    assert sum(sizes) == num_elements(adapters) == lora.trained_parameters(done.trainer)


def test_the_checkpoint_of_the_base_is_only_read(done: Any) -> None:
    assert hashes(done.folder) == done.before


def test_merged_weights_are_the_same_model(done: Any) -> None:
    plain = lora.merged(done.trainer)
    tokens = np.random.default_rng(0).integers(0, 256, size=(2, 16)).astype(np.uint8)
    adapted = done.trainer.model.apply({"params": done.trainer.state.params}, tokens)
    merged = plain.model.apply({"params": plain.state.params}, tokens)
    base = plain.model.apply({"params": done.trainer.state.params[BASE]}, tokens)
    np.testing.assert_allclose(merged, adapted, rtol=1e-4, atol=1e-5)
    assert np.abs(adapted - base).max() > 1e-3  # the adapters do something


@pytest.mark.slow
def test_a_run_trains_its_base_fine_tunes_merges_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    results = lora.run(config_of(run))
    assert evaluate.evaluate(run) == results["test"]
    shown = dict(
        line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line
    )
    assert float(shown["merged test loss"]) == pytest.approx(results["test"]["loss"], rel=1e-5)
    assert xt.find_last_checkpoint(f"{run}-{BASE}") is not None


def test_the_whole_model_is_trained_where_that_is_asked_for(done: Any, tmp_path: Path) -> None:
    trainer = lora.make_trainer(config_of(tmp_path, "--config.method=full"))
    assert set(trainer.state.params) == {BASE}
    assert lora.trained_parameters(trainer) == trainer.get_num_params()
    lora.load_base(trainer, done.folder)
    loaded = flatten_with_paths(trainer.state.params[BASE])
    kept = flatten_with_paths(done.trainer.state.params[BASE])
    assert all(np.array_equal(loaded[path], kept[path]) for path in kept)


def test_a_method_that_there_is_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(xt.ConfigError, match=re.escape("method: found 'lroa'. Did you mean")):
        lora.make_trainer(config_of(tmp_path, "--config.method=lroa"))

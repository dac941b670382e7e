"""The parts of the digits experiment: its images, its loader, its network."""

import itertools
import json
from pathlib import Path
from typing import Any

import digits as experiment
import evaluate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vision.data import Batch, Examples, ImageLoader, load_digits
from vision.model import DigitsCNN

import xtrainer as xt
from xtrainer.data import GrainLoader
from xtrainer.errors import ConfigError, LoaderError, MissingDependencyError
from xtrainer.registry import models
from xtrainer.types import DataShard


@pytest.fixture(scope="module")
def digits() -> dict[str, Batch]:
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.fixture
def numbers() -> Batch:
    return {"inputs": np.arange(10.0), "targets": np.arange(10)}


def test_sets_hold_every_digit_once(digits: dict[str, Batch]) -> None:
    sizes = {name: len(part["targets"]) for name, part in digits.items()}
    assert sizes == {"train": 1257, "val": 270, "test": 270}
    images = np.concatenate([part["inputs"].reshape(-1, 64) for part in digits.values()])
    assert len(np.unique(images, axis=0)) == 1797


def test_images_are_normalised_and_typed(digits: dict[str, Batch]) -> None:
    train = digits["train"]
    assert train["inputs"].shape[1:] == (8, 8, 1)
    assert train["inputs"].dtype == np.float32
    assert train["targets"].dtype == np.int32
    np.testing.assert_allclose([train["inputs"].mean(), train["inputs"].std()], [0, 1], atol=1e-5)


def test_sets_are_the_same_each_time(digits: dict[str, Batch]) -> None:
    for name, part in load_digits().items():
        np.testing.assert_array_equal(part["inputs"], digits[name]["inputs"])


def test_missing_sklearn_is_an_error_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"xtrainer\[experiments\]\""):
        load_digits()


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_unshuffled_passes_hold_every_example_in_order(numbers: Batch, batch_size: int) -> None:
    loader = ImageLoader(numbers, batch_size)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader)
        np.testing.assert_array_equal(
            np.concatenate([batch["targets"] for batch in batches]), np.arange(10)
        )


def test_shuffled_passes_are_full_batches_in_a_new_order(numbers: Batch) -> None:
    loader = ImageLoader(numbers, 3, shuffle_seed=0)
    first, second = ([batch["targets"] for batch in loader] for _ in range(2))
    assert [len(targets) for targets in first] == [3, 3, 3]
    assert len(np.unique(np.concatenate(first))) == 9
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_inputs_and_targets_stay_together(numbers: Batch) -> None:
    for batch in ImageLoader(numbers, 4, shuffle_seed=1):
        np.testing.assert_array_equal(batch["inputs"], batch["targets"])


@pytest.mark.parametrize("used", [0, 2, 3, 4, 7])
def test_a_pass_continues_where_a_state_says(numbers: Batch, used: int) -> None:
    def read(loader: ImageLoader) -> list[list[int]]:
        batches = itertools.chain.from_iterable(iter(loader) for _ in range(4))
        return [batch["targets"].tolist() for batch in itertools.islice(batches, 9)]

    whole = read(ImageLoader(numbers, 3, shuffle_seed=5))
    old = ImageLoader(numbers, 3, shuffle_seed=5)
    batches = itertools.chain.from_iterable(iter(old) for _ in range(4))
    for _ in range(used):
        next(batches)
    new = ImageLoader(numbers, 3, shuffle_seed=5)
    new.set_state(json.loads(json.dumps(old.get_state())))
    rest = read(new)
    assert rest[: 9 - used] == whole[used:]


def test_a_pass_that_is_left_is_not_continued(numbers: Batch) -> None:
    left = ImageLoader(numbers, 3, shuffle_seed=5)
    next(iter(left))
    whole = ImageLoader(numbers, 3, shuffle_seed=5)
    list(whole)
    for found, expected in zip(left, whole, strict=True):
        np.testing.assert_array_equal(found["targets"], expected["targets"])


def test_fewer_examples_than_a_batch_is_an_error(numbers: Batch) -> None:
    with pytest.raises(LoaderError, match="Found 10 examples, expected at least batch_size=11"):
        ImageLoader(numbers, 11, shuffle_seed=0)


def read_parts(
    numbers: Batch, seed: int | None, count: int, batches: int, state: dict | None = None
) -> tuple[list[list[int]], dict]:
    """Returns the next batches of as many loaders, put together, and the state of all."""
    read, states = [], []
    for index in range(count):
        loader = ImageLoader(numbers, 4, shuffle_seed=seed)
        loader.set_shard(DataShard(index, count))
        if state is not None:
            loader.set_state(state)
        stream = itertools.chain.from_iterable(iter(loader) for _ in range(9))
        read.append([batch["targets"].tolist() for batch in itertools.islice(stream, batches)])
        states.append(json.loads(json.dumps(loader.get_state())))
    assert all(each == states[0] for each in states)
    return [sum(parts, []) for parts in zip(*read, strict=True)], states[0]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (4, 2)])
@pytest.mark.parametrize("used", [0, 1, 2, 4])
def test_parts_are_the_batches_of_one_process_also_on_another_count(
    numbers: Batch, seed: int | None, before: int, after: int, used: int
) -> None:
    whole, _ = read_parts(numbers, seed, 1, used + 5)
    head, state = read_parts(numbers, seed, before, used)
    tail, _ = read_parts(numbers, seed, after, 5, state)
    assert head + tail == whole


def test_a_batch_of_images_that_does_not_divide_into_parts_is_an_error(numbers: Batch) -> None:
    with pytest.raises(LoaderError, match="batch_size=4 for 3"):
        ImageLoader(numbers, 4).set_shard(DataShard(0, 3))


def test_examples_are_the_rows_of_the_set(numbers: Batch) -> None:
    examples = Examples(numbers)
    assert len(examples) == 10
    assert examples[7] == {"inputs": 7.0, "targets": 7}


def digits_config(run: Path, *more: str) -> Any:
    arguments = [
        "--config.data.loader=grain",
        "--config.num_epochs=3",
        "--config.trainer.check_val_every_n_epoch=1",
        f"--config.trainer.logger.log_path={run}",
    ]
    return xt.parse_config(experiment.get_config(), [*arguments, *more])


def test_digits_learn_from_grain_and_are_evaluated_to_the_last_digit(tmp_path: Path) -> None:
    results = experiment.run(digits_config(tmp_path))
    assert results["test"]["accuracy"] > 0.8
    assert evaluate.evaluate(tmp_path) == results["test"]


def test_both_loaders_of_digits_give_batches_of_one_shape(tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    loaders = experiment.make_loaders(config.data)
    assert all(isinstance(loader, GrainLoader) for loader in loaders.values())
    config.data.loader = "arrays"
    for name, loader in experiment.make_loaders(config.data).items():
        assert len(loader) == len(loaders[name])
        found, expected = loaders[name].example(), loader.example()
        for key in expected:
            assert (found[key].shape, found[key].dtype) == (
                expected[key].shape,
                expected[key].dtype,
            )


def test_a_loader_that_digits_does_not_know_is_an_error(tmp_path: Path) -> None:
    config = digits_config(tmp_path, "--config.data.loader=grian")
    with pytest.raises(ConfigError, match="data.loader.*Did you mean 'grain'"):
        experiment.make_loaders(config.data)


def test_cnn_updates_batch_statistics_in_training_only() -> None:
    model = DigitsCNN(channels=(4, 8))
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1)) + 1
    variables = model.init(jax.random.key(1), images)
    logits, kept = model.apply(variables, images, mutable=["batch_stats"])
    assert logits.shape == (6, 10)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], kept["batch_stats"])
    rngs = {"dropout": jax.random.key(2)}
    _, moved = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    mean = moved["batch_stats"]["norm_0"]["mean"]
    assert jnp.abs(mean - variables["batch_stats"]["norm_0"]["mean"]).max() > 1e-3


def test_the_cnn_is_registered() -> None:
    assert models.get("digits_cnn") is DigitsCNN

"""The parts of the byte language model: its text, its transformer, its trigram."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm.model import Transformer
from lm.text import (
    RandomWindows,
    SequentialWindows,
    load_splits,
    set_of,
    source_files,
)
from lm.trigram import Trigram

from xtrainer.errors import LoaderError
from xtrainer.registry import models
from xtrainer.types import DataShard

SMALL = {"num_layers": 2, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "context_length": 12}


@pytest.fixture
def stream() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 101).astype(np.uint8)


@pytest.fixture(scope="module")
def splits() -> dict[str, np.ndarray]:
    return load_splits()


def write_files(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")


# Text


def test_splits_of_this_python_are_about_eight_one_one(splits: dict[str, np.ndarray]) -> None:
    sizes = {name: len(stream) for name, stream in splits.items()}
    assert sizes["train"] > 2_000_000
    assert 0.6 < sizes["train"] / sum(sizes.values()) < 0.95
    assert min(sizes.values()) > 100_000


def test_splits_are_the_same_each_time(splits: dict[str, np.ndarray]) -> None:
    for name, stream in load_splits().items():
        np.testing.assert_array_equal(stream, splits[name])


def test_set_of_a_file_depends_on_its_relative_path_alone() -> None:
    pinned = {
        "csv.py": "val",
        "asyncio/events.py": "val",
        "compileall.py": "test",
        "_pyio.py": "train",
    }
    assert {name: set_of(name) for name in pinned} == pinned
    counts = [set_of(f"file_{number}.py") for number in range(5000)]
    assert 400 < counts.count("val") < 600
    assert 400 < counts.count("test") < 600


def test_tests_tables_and_installed_packages_are_not_read(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        ["b.py", "a/z.py", "a/tests/t.py", "site-packages/x.py", "encodings/cp1.py", "a/n.txt"],
    )
    assert source_files(tmp_path) == ["a/z.py", "b.py"]


def test_streams_hold_every_file_in_order_with_end_marks(tmp_path: Path) -> None:
    names = [f"file_{number}.py" for number in range(60)]
    write_files(tmp_path, names)
    for name, stream in load_splits(tmp_path).items():
        expected = [each for each in sorted(names) if set_of(each) == name]
        contents = stream.tobytes().split(b"\0")
        assert contents == [f"# {each}\n".encode() for each in expected] + [b""]


def test_a_folder_without_python_files_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LoaderError, match="no Python files for train, val, test in .*data.root"):
        load_splits(tmp_path)


# Loaders


def test_random_windows_are_stretches_of_the_stream(stream: np.ndarray) -> None:
    text = stream.tobytes()
    for batch in itertools.islice(RandomWindows(stream, 4, 10, seed=1), 20):
        for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
            assert inputs.tobytes() + targets[-1:].tobytes() in text
            np.testing.assert_array_equal(inputs[1:], targets[:-1])
        assert batch["mask"].min() == 1
        assert batch["inputs"].shape == batch["mask"].shape == (4, 10)


def test_random_windows_reach_both_ends_of_the_stream(stream: np.ndarray) -> None:
    loader = RandomWindows(np.arange(12, dtype=np.uint8), 64, 10)
    assert set(loader.batch(0)["inputs"][:, 0]) == {0, 1}


def test_random_windows_continue_where_a_state_says(stream: np.ndarray) -> None:
    loader = RandomWindows(stream, 4, 10, seed=3)
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(loader.get_state()))
    expected = next(iterator)
    other = RandomWindows(stream, 4, 10, seed=3)
    other.set_state(state)
    np.testing.assert_array_equal(next(iter(other))["inputs"], expected["inputs"])


def test_random_windows_differ_by_seed_and_number(stream: np.ndarray) -> None:
    first = RandomWindows(stream, 4, 10, seed=1).batch(0)["inputs"]
    assert (first != RandomWindows(stream, 4, 10, seed=2).batch(0)["inputs"]).any()
    assert (first != RandomWindows(stream, 4, 10, seed=1).batch(1)["inputs"]).any()


def test_a_stream_shorter_than_a_window_is_an_error(stream: np.ndarray) -> None:
    for loader in (RandomWindows, SequentialWindows):
        with pytest.raises(LoaderError, match="Found 10 bytes.*expected at least.*11"):
            loader(stream[:10], 4, 10)


@pytest.mark.parametrize("length", [11, 20, 21, 22, 100, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_sequential_windows_give_each_target_once(
    stream: np.ndarray, length: int, batch_size: int
) -> None:
    stream = stream[:length]
    loader = SequentialWindows(stream, batch_size, 10)
    batches = list(loader)
    assert len(batches) == len(loader)
    targets = np.concatenate([batch["targets"][batch["mask"] == 1] for batch in batches])
    inputs = np.concatenate([batch["inputs"][batch["mask"] == 1] for batch in batches])
    np.testing.assert_array_equal(targets, stream[1:])
    np.testing.assert_array_equal(inputs, stream[:-1])
    np.testing.assert_array_equal(targets, stream[loader.target_positions()])


def test_capped_windows_are_spread_over_the_whole_stream() -> None:
    stream = np.random.default_rng(0).integers(0, 256, 1001).astype(np.uint8)
    loader = SequentialWindows(stream, 4, 10, max_bytes=250)
    targets = np.concatenate([batch["targets"][batch["mask"] == 1] for batch in loader])
    positions = loader.target_positions()
    np.testing.assert_array_equal(targets, stream[positions])
    assert len(positions) == 250
    assert positions.min() == 1
    assert positions.max() > 950
    assert len(set(positions)) == 250


def test_sequential_windows_start_anew_unless_a_state_was_set(stream: np.ndarray) -> None:
    loader = SequentialWindows(stream, 2, 10)
    batches = list(loader)
    next(iter(loader))
    assert len(list(loader)) == len(batches) == 5
    loader.set_state({"next_batch": 3})
    rest = list(loader)
    assert len(rest) == 2
    np.testing.assert_array_equal(rest[0]["inputs"], batches[3]["inputs"])


def read_parts(
    loaders: list[RandomWindows] | list[SequentialWindows], batches: int, state: dict | None = None
) -> tuple[list[np.ndarray], dict]:
    """Returns the next batches of parts in order, put together, and the state of all."""
    read, states = [], []
    for index, loader in enumerate(loaders):
        loader.set_shard(DataShard(index, len(loaders)))
        if state is not None:
            loader.set_state(state)
        taken = itertools.islice(loader, batches)
        # Masked bytes are told apart from bytes that are 0.
        read.append([batch["inputs"] + 256 * batch["mask"] for batch in taken])
        states.append(json.loads(json.dumps(loader.get_state())))
    assert all(each == states[0] for each in states)
    return [np.concatenate(parts) for parts in zip(*read, strict=True)], states[0]


@pytest.mark.parametrize("kind", [RandomWindows, SequentialWindows])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (4, 2), (8, 4)])
@pytest.mark.parametrize("used", [1, 2])
def test_parts_are_the_batches_of_one_process_also_on_another_count(
    stream: np.ndarray, kind: type, before: int, after: int, used: int
) -> None:
    def loaders(count: int) -> list:
        return [kind(stream, 8, 4) for _ in range(count)]

    whole, _ = read_parts(loaders(1), 4)
    assert len(whole[3]) == (1 if kind is SequentialWindows else 8)
    head, state = read_parts(loaders(before), used)
    tail, _ = read_parts(loaders(after), 4 - used, state)
    for found, expected in zip(head + tail, whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_part_of_windows_does_not_change_the_batch_of_a_number(stream: np.ndarray) -> None:
    loader = RandomWindows(stream, 4, 10)
    loader.set_shard(DataShard(1, 2))
    assert next(iter(loader))["inputs"].shape == (2, 10)
    assert loader.batch(0)["inputs"].shape == (4, 10)


@pytest.mark.parametrize("kind", [RandomWindows, SequentialWindows])
def test_a_batch_of_windows_that_does_not_divide_into_parts_is_an_error(
    stream: np.ndarray, kind: type
) -> None:
    with pytest.raises(LoaderError, match="batch_size=4 for 3"):
        kind(stream, 4, 10).set_shard(DataShard(0, 3))


# Model


def init(model: Transformer, length: int = 12) -> dict:
    return model.init(jax.random.key(0), jnp.zeros((2, length), jnp.uint8))


def trained_like(model: Transformer) -> dict:
    """Parameters without the zeros of a fresh model, which hide every mistake."""
    leaves, tree = jax.tree.flatten(init(model)["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return {"params": jax.tree.unflatten(tree, noisy)}


def test_a_fresh_model_predicts_every_byte_alike() -> None:
    model = Transformer(**SMALL)
    tokens = jnp.arange(24, dtype=jnp.uint8).reshape(2, 12)
    logits = model.apply({"params": init(model)["params"]}, tokens)
    assert logits.shape == (2, 12, 256)
    np.testing.assert_array_equal(logits, 0)


@pytest.mark.parametrize("tie", [False, True])
def test_logits_depend_on_no_later_byte(tie: bool) -> None:
    model = Transformer(**SMALL, shift_width=2, tie_embeddings=tie)
    variables = trained_like(model)
    tokens = jax.random.randint(jax.random.key(2), (1, 12), 0, 256)
    changed = tokens.at[0, 7].set((tokens[0, 7] + 1) % 256)
    before, after = model.apply(variables, tokens), model.apply(variables, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (jnp.abs(before[:, 7:] - after[:, 7:]).max(axis=-1) > 1e-4).all()


def test_logits_depend_on_the_order_of_earlier_bytes() -> None:
    model = Transformer(**SMALL, shift_width=0)
    variables = trained_like(model)
    tokens = jnp.arange(12)[None, :]
    swapped = tokens.at[0, 2].set(5).at[0, 5].set(2)
    difference = model.apply(variables, tokens)[0, -1] - model.apply(variables, swapped)[0, -1]
    assert jnp.abs(difference).max() > 1e-3


def test_dropout_works_in_training_only() -> None:
    model = Transformer(**SMALL, dropout_rate=0.5)
    variables = trained_like(model)
    tokens = jnp.arange(24).reshape(2, 12)
    still = [model.apply(variables, tokens) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    first, second = (
        model.apply(variables, tokens, train=True, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    )
    assert jnp.abs(first - second).max() > 1e-3


def test_one_scalar_is_sown() -> None:
    model = Transformer(**SMALL)
    tokens = jnp.arange(24).reshape(2, 12)
    _, sown = model.apply(trained_like(model), tokens, mutable=["intermediates"])
    (leaf,) = jax.tree.leaves(sown)
    assert leaf.shape == ()
    assert leaf > 0


def test_compute_dtype_leaves_parameters_and_logits_in_float32() -> None:
    model = Transformer(**SMALL, dtype="bfloat16")
    variables = trained_like(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    tokens = jnp.arange(24).reshape(2, 12)
    logits = model.apply(variables, tokens)
    exact = Transformer(**SMALL).apply(variables, tokens)
    assert logits.dtype == jnp.float32
    assert 0 < jnp.abs(logits - exact).max() < 0.1 * jnp.abs(exact).max()


def test_an_input_longer_than_the_context_is_an_error() -> None:
    with pytest.raises(ValueError, match="Found 13 tokens, expected at most context_length=12"):
        init(Transformer(**SMALL), length=13)


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="Found embed_dim=16, expected a multiple of twice"):
        init(Transformer(**SMALL | {"num_heads": 3}))


def test_the_model_is_registered() -> None:
    assert models.get("byte_lm") is Transformer


# Trigram


def test_trigram_probabilities_add_up_to_one(stream: np.ndarray) -> None:
    model = Trigram(stream)
    targets = np.arange(256)
    unseen = np.setdiff1d(targets, stream)[0]
    for context in (stream[:2], [stream[0], unseen], [unseen, stream[0]], [unseen, unseen]):
        pairs = np.tile(np.asarray(context, np.uint8), (256, 1))
        np.testing.assert_allclose(model.probabilities(pairs, targets).sum(), 1, rtol=1e-12)
        assert model.probabilities(pairs, targets).min() > 0


def test_trigram_follows_witten_and_bell() -> None:
    a, b, c = 97, 98, 99
    model = Trigram(np.frombuffer(b"abcabb", np.uint8))
    unigram = (1 + 3 / 256) / (6 + 3)  # c: once in six bytes of three kinds
    bigram = (1 + 2 * unigram) / (2 + 2)  # after b: c and b, once each
    trigram = (1 + 2 * bigram) / (2 + 2)
    found = model.probabilities(np.array([[a, b]], np.uint8), np.array([c]))
    np.testing.assert_allclose(found, [trigram], rtol=1e-12)


def test_trigram_reads_the_context_across_windows() -> None:
    text = np.frombuffer(b"0123456789" * 300, np.uint8)
    windows = SequentialWindows(text, 4, 16)
    bits = Trigram(text).bits_per_byte(text, windows.target_positions())
    assert bits < 0.1


def test_trigram_of_python_source_beats_shorter_contexts(splits: dict[str, np.ndarray]) -> None:
    stream = splits["val"]
    bits = Trigram(splits["train"]).bits_per_byte(stream, np.arange(1, len(stream)))
    shares = np.bincount(stream, minlength=256) / len(stream)
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert 2.0 < bits < 3.2 < entropy

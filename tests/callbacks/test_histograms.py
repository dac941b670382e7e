"""Histograms of parameters equal NumPy's, and cost nothing where they are not due."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo
from jax.sharding import NamedSharding, PartitionSpec

import xtrainer as xt
from xtrainer.callbacks.histograms import count_values
from xtrainer.errors import ConfigError
from xtrainer.tree import flatten_with_paths


class Told(probes.Memory):
    """Keeps histograms too."""

    def __init__(self) -> None:
        super().__init__()
        self.histograms: list[tuple[str, int, np.ndarray, np.ndarray]] = []
        self.flushed = 0

    def log_histogram(self, key: str, counts: Any, edges: Any, step: int) -> None:
        """Keeps one."""
        self.histograms.append((key, step, counts, edges))

    def flush(self) -> None:
        """Counts."""
        self.flushed += 1

    def steps_of(self, key: str) -> list[int]:
        """Returns the steps of one series."""
        return [step for name, step, _, _ in self.histograms if name == key]


def begin(stage: probes.Repeatable, *callbacks: Any, every: int = 1, **config: Any) -> Any:
    """Returns a trainer with such a callback, whose logger keeps histograms."""
    trainer = stage.begin(*callbacks, xt.HistogramConfig(**config), every=every)
    trainer.logger = Told()
    return trainer


def kept(params: dict[int, Any], *steps: int) -> Any:
    """Returns what makes a callback that keeps the parameters of some steps on the host."""

    def keep(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step in steps:
            params[step] = flatten_with_paths(zoo.host(trainer.state.params))

    return probes.acting("on_training_step", keep)


# Of one array.


@pytest.mark.parametrize("bins", [1, 7, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_counts_equal_those_of_numpy(bins: int, dtype: str) -> None:
    x = jnp.asarray(np.random.default_rng(bins).normal(size=(37, 11)) * 5, dtype)
    counts, edges = count_values(x, bins)
    values = np.asarray(x.astype(jnp.float32)).ravel()
    expected, _ = np.histogram(values, bins=np.asarray(edges))
    assert counts.tolist() == expected.tolist() and counts.sum() == values.size
    assert (edges[0], edges[-1]) == (values.min(), values.max())
    np.testing.assert_allclose(edges, np.histogram(values, bins=bins)[1], rtol=1e-5, atol=1e-6)


def test_values_that_are_not_finite_are_left_out() -> None:
    counts, edges = count_values(jnp.array([0.0, jnp.nan, 1.0, jnp.inf, -jnp.inf, 0.9]), 2)
    assert (counts.tolist(), edges.tolist()) == ([1, 2], [0.0, 0.5, 1.0])
    counts, edges = count_values(jnp.full(3, jnp.nan), 2)
    assert counts.tolist() == [0, 0] and bool(jnp.isfinite(edges).all())


def test_equal_values_are_one_bin_of_width_one() -> None:
    counts, edges = count_values(jnp.full((4, 2), 3.0), 4)
    expected, limits = np.histogram(np.full(8, 3.0), bins=4)
    assert (counts.tolist(), edges.tolist()) == (expected.tolist(), limits.tolist())


def test_a_sharded_array_has_the_same_histogram() -> None:
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b")))
    whole = jax.jit(count_values, static_argnums=1)
    for one, other in zip(whole(x, 16), whole(spread, 16), strict=True):
        np.testing.assert_array_equal(one, other)


# In a run.


def test_histograms_are_those_of_the_parameters_after_due_steps(stage: probes.Repeatable) -> None:
    params: dict[int, Any] = {}
    trainer = begin(stage, kept(params, 3, 6), every=4, every_n_steps=3, bins=8)
    trainer.train_model(probes.numbered(7), num_train_steps=7)
    found = trainer.logger.histograms
    paths = sorted(params[3])
    assert [(key, step) for key, step, _, _ in found] == [
        (f"parameters/{path}", step) for step in (3, 6) for path in paths
    ]
    for key, step, counts, edges in found:
        values = params[step][key.removeprefix("parameters/")].ravel()
        assert counts.tolist() == np.histogram(values, bins=edges)[0].tolist()


def test_updates_are_what_the_step_has_changed(stage: probes.Repeatable) -> None:
    params: dict[int, Any] = {}
    trainer = begin(
        stage,
        kept(params, 3, 4),
        every_n_steps=4,
        updates=True,
        parameters=False,
        include=("*bias",),
    )
    trainer.train_model(probes.numbered(6), num_train_steps=6)
    names = [path for path in params[4] if path.endswith("bias")]
    assert [key for key, *_ in trainer.logger.histograms] == [f"updates/{n}" for n in sorted(names)]
    for key, step, counts, edges in trainer.logger.histograms:
        path = key.removeprefix("updates/")
        change = (params[4][path] - params[3][path]).ravel()
        assert step == 4
        assert counts.tolist() == np.histogram(change, bins=edges)[0].tolist()


def test_with_updates_at_every_step_only_the_first_has_none(stage: probes.Repeatable) -> None:
    trainer = begin(stage, every_n_steps=1, updates=True, include=("*Dense_0/bias",))
    trainer.train_model(probes.numbered(4), num_train_steps=4)
    (path,) = {key.split("/", 1)[1] for key, *_ in trainer.logger.histograms}
    assert trainer.logger.steps_of(f"parameters/{path}") == [1, 2, 3, 4]
    assert trainer.logger.steps_of(f"updates/{path}") == [2, 3, 4]


def test_one_program_counts_all_and_is_compiled_once(stage: probes.Repeatable) -> None:
    with zoo.compilations() as compiled:
        trainer = begin(stage, every_n_steps=2)
        trainer.train_model(probes.numbered(8), num_train_steps=8)
    assert {"count_all": 1} == Counter({k: n for k, n in compiled.items() if "count" in k})
    assert len({step for _, step, _, _ in trainer.logger.histograms}) == 4


def test_the_course_of_training_is_the_same(stage: probes.Repeatable) -> None:
    plain = stage.begin()
    plain.train_model(probes.numbered(5), num_train_steps=5)
    expected = probes.learned(plain)
    trainer = begin(stage, every_n_steps=2, updates=True)
    trainer.train_model(probes.numbered(5), num_train_steps=5)
    probes.assert_same_course(probes.learned(trainer), expected)


def test_nothing_is_called_between_due_steps(stage: probes.Repeatable) -> None:
    trainer = begin(stage, every_n_steps=10)
    callback = trainer.callbacks[-1]
    assert [callback.next_step(step) for step in (0, 9, 10, 19)] == [10, 10, 20, 20]
    trainer = begin(stage, every_n_steps=10, updates=True)
    callback = trainer.callbacks[-1]
    assert [callback.next_step(step) for step in (0, 8, 9, 10)] == [9, 9, 10, 19]


def test_what_was_counted_is_told_before_a_checkpoint(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    told: list[int] = []
    note = lambda trainer, *_: told.append(len(trainer.logger.histograms))  # noqa: E731
    saving = xt.ModelCheckpointConfig(every_n_steps=2, log_path=str(tmp_path))
    trainer = begin(stage, probes.acting("on_checkpoint", note), every=50, every_n_steps=2)
    trainer.callbacks.append(saving.create(trainer))
    trainer.train_model(probes.numbered(4), num_train_steps=4)
    arrays = len(flatten_with_paths(trainer.state.params))
    assert told[:2] == [arrays, 2 * arrays]


def test_few_histograms_wait_where_no_row_is_logged(stage: probes.Repeatable) -> None:
    waiting: list[int] = []
    trainer = begin(stage, every=50, every_n_steps=1, include=("*Dense_0/bias",))
    (histograms,) = trainer.callbacks
    count = lambda *_: waiting.append(len(histograms._pending))  # noqa: E731
    trainer.callbacks.append(probes.acting("on_training_step", count)(trainer))
    trainer.train_model(probes.numbered(12), num_train_steps=12)
    assert waiting == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]
    assert [step for _, step, _, _ in trainer.logger.histograms] == list(range(1, 13))


def test_a_pattern_of_no_parameter_is_a_mistake(stage: probes.Repeatable) -> None:
    trainer = begin(stage, include=("Dense_0/kernal",))
    with pytest.raises(ConfigError, match="'Dense_0/kernal'.*Did you mean 'Dense_0/kernel'"):
        trainer.train_model(probes.numbered(1), num_train_steps=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bins": 0}, "bins: found 0"),
        ({"bins": 513}, "bins: found 513"),
        ({"parameters": False}, "parameters: found False"),
        ({"main_process_only": True}, "main_process_only: found True"),
    ],
)
def test_settings_that_cannot_be_are_reported(fields: dict[str, Any], message: str) -> None:
    (problem,) = xt.HistogramConfig(**fields).problems()
    assert message in problem

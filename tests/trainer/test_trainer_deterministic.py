"""Two runs of one program give the same bits, and a resume under another setting is told of."""

import logging
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.trainer.compiled import compile_program
from xtrainer.trainer.deterministic import compiler_options, flag_problems, seed_generators

BATCHES = 4


class Lowered:
    """Notes with which options it is compiled."""

    def __init__(self) -> None:
        self.options: list[Any] = []

    def compile(self, compiler_options: Any = None) -> str:
        """Returns a program."""
        self.options.append(compiler_options)
        return "program"


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


def begin(stage: probes.Repeatable, *callbacks: Any, **config: Any) -> Any:
    folder = config.pop("folder", None)
    trainer = stage.begin(*callbacks, folder=folder)
    trainer.trainer_config = replace(trainer.trainer_config, **{"deterministic": True, **config})
    return trainer


class Drawing:
    """A loader that adds noise from the generators that the process shares."""

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Any:
        for batch in probes.numbered(BATCHES):
            noise = np.random.normal(size=batch["inputs"].shape) + random.random()
            yield {**batch, "inputs": (batch["inputs"] + noise).astype(np.float32)}


# The compiler.


@pytest.mark.parametrize(
    ("asked", "platform", "options"),
    [
        (True, "gpu", {"xla_gpu_deterministic_ops": True}),
        (True, "rocm", {"xla_gpu_deterministic_ops": True}),
        (True, "cpu", None),  # the same numbers each time anyway, as on TPUs
        (True, "tpu", None),
        (False, "gpu", None),
    ],
)
def test_steps_on_gpus_are_compiled_without_operations_that_depend_on_time(
    asked: bool, platform: str, options: Any
) -> None:
    assert compiler_options(asked, platform) == options
    mesh = SimpleNamespace(devices=np.array([[SimpleNamespace(platform=platform)]]))
    compiling: Any = compile_program(
        xt.TrainerConfig(deterministic=asked),
        SimpleNamespace(mesh=mesh),  # type: ignore[arg-type]
    )
    lowered = Lowered()
    assert compiling(lowered, "train_step") == "program" and lowered.options == [options]


def test_both_steps_of_a_trainer_are_compiled_so(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = object()
    asked = []

    def choose(config: xt.TrainerConfig, layout: Any) -> Any:
        asked.append(config.deterministic)
        return chosen

    monkeypatch.setattr("xtrainer.trainer.compiled.compile_program", choose)
    trainer = zoo.make_trainer(deterministic=True)
    for executor in (trainer.compiled_train_step, trainer.compiled_eval_step):
        assert executor.programs._compile is chosen
    assert asked == [True, True]


def test_the_option_is_one_of_the_compiler_and_another_word_is_not() -> None:
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    lowered.compile(compiler_options=compiler_options(True, "gpu"))
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_deterministic_opps": True})


@pytest.mark.parametrize(
    "flag",
    ["--xla_gpu_deterministic_ops=false", "--xla_gpu_exclude_nondeterministic_ops=0"],
)
def test_flags_that_say_the_contrary_are_refused(
    monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=/x {flag} --xla_cpu_foo=1")
    with pytest.raises(xt.ConfigError, match=f"deterministic: found True with {flag} in XLA_FLAGS"):
        xt.check_configs(trainer=xt.TrainerConfig(deterministic=True))
    xt.check_configs(trainer=xt.TrainerConfig())


def test_flags_that_say_the_same_are_fine() -> None:
    assert flag_problems("--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0") == []
    assert flag_problems("") == []


# The generators.


def test_two_runs_draw_the_same_numbers(stage: probes.Repeatable) -> None:
    courses = []
    for drawn in (3, 5):  # what was drawn before makes no difference
        np.random.normal(size=drawn), random.random()
        trainer = begin(stage)
        trainer.train_model(Drawing(), num_epochs=2)
        courses.append(probes.learned(trainer))
    probes.assert_same_course(*courses)


def test_another_seed_and_a_later_step_draw_others() -> None:
    drawn = set()
    for seed, step in ((0, 0), (1, 0), (0, 1), (2**32 - 1, 2**31 - 1)):
        seed_generators(seed, step)
        drawn.add((random.random(), np.random.random()))
    seed_generators(0, 0)
    assert len(drawn) == 4 and (random.random(), np.random.random()) in drawn


def test_a_run_that_did_not_ask_leaves_the_generators_alone(stage: probes.Repeatable) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    begin(stage, deterministic=False).train_model(probes.numbered(BATCHES), num_epochs=1)
    after = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert after == before


# A resume.


@pytest.mark.parametrize("then", [False, True])
def test_a_resume_under_another_setting_is_told(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture, then: bool
) -> None:
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path / "checkpoints"))
    first = begin(stage, saving, folder=tmp_path)
    first.train_model(probes.numbered(BATCHES), num_epochs=1)
    with caplog.at_level(logging.WARNING):
        begin(stage, saving, folder=tmp_path, deterministic=then).load_model()
    assert ("deterministic: True then, False now" in caplog.text) is not then

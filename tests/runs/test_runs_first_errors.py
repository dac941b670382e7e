"""What does a new user read after a first mistake? One message, below lines of the own program."""

import os
import re
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import zoo
from flax import nnx
from ml_collections import ConfigDict

import xtrainer as xt
from xtrainer.loggers import WandBLoggerConfig

ROOT = Path(__file__).parents[2]
LIBRARIES = re.compile(r'File ".*/(jax|jaxlib|flax|optax|orbax|ml_collections)/')
OWN = re.compile(rf'File "{re.escape(str(Path(xt.__file__).parent))}/')
CHAINED = ("During handling of the above", "direct cause of the following", "JAX has removed its")
MOST_LINES = 24


def told(mistake: Callable[[], Any]) -> str:
    """Returns what Python would show of the error of a mistake.

    Raises:
        AssertionError: If it shows more than the program's own lines and a message.
    """
    try:
        mistake()
    except Exception as error:
        text = "".join(traceback.format_exception(error)).rstrip()
    else:
        raise AssertionError("no error")
    assert not LIBRARIES.search(text), text
    assert not OWN.search(text), text
    assert not any(words in text for words in CHAINED), text
    assert len(text.splitlines()) <= MOST_LINES, text
    return text


def message(text: str) -> str:
    """Returns what stands below the last line of code, in one line."""
    lines = text.splitlines()
    last = max(i for i, line in enumerate(lines) if re.match(r'  File "|    ', line))
    return " ".join(line.strip() for line in lines[last + 1 :])


def make(
    loss: Callable[..., Any] | None = None,
    model: Any = zoo.MLP,
    arguments: Any = None,
    **kwargs: Any,
) -> Any:
    """Returns a trainer on one device; ``loss`` takes (logits, batch)."""

    class Mine(zoo.Classifier):
        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            logits = apply_fn({"params": params}, batch.inputs, train=train)
            return loss(logits, batch)  # type: ignore[misc]

    config = {"logger": None, "enable_progress_bar": False, **kwargs.pop("config", {})}
    optimizer = kwargs.pop("optimizer", zoo.optimizer())
    batch = kwargs.pop("batch", zoo.classification_data(8))
    parallel = kwargs.pop("parallel", None)
    return kwargs.pop("trainer_class", zoo.Classifier if loss is None else Mine)(
        xt.TrainerConfig(**config),
        xt.ModelConfig(
            model_class=model, model_config=arguments, parallel=parallel or xt.ParallelConfig()
        ),
        optimizer,
        batch,
        None if parallel else zoo.devices(1),
    )


def per_example(logits: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)


class Flat(nn.Module):
    """A layer with a loss of its own to call it by."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(x)


class Needing(nn.Module):
    """A model that needs another argument."""

    @nn.compact
    def __call__(self, x: Any, deterministic: bool) -> Any:
        return nn.Dense(3)(x)


class Multiplying(nn.Module):
    """A model for seven features."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        return x @ self.param("w", nn.initializers.ones, (7, 3))


class Dropping(nn.Module):
    """A model that draws random numbers."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Nnx(nnx.Module):
    """A module of the other kind."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, train: bool = True) -> Any:
        return self.layer(x)


class NoLoss(xt.TrainerModule):
    """A trainer without a loss."""


class Misnamed(xt.TrainerModule):
    """A trainer whose loss has another name."""

    def loss_fn(self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
        """Is never called."""


class Short(xt.TrainerModule):
    """A trainer whose loss takes too little."""

    def loss_function(self, params, batch):  # type: ignore[override]
        return 0.0, ({}, {})


class NoDict(zoo.Classifier):
    """A trainer that passes bare parameters."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn(params, batch.inputs, train=train)
        return per_example(logits, batch), ({}, {})


class Cut(zoo.Classifier):
    """A trainer that gives its model fewer features than at the start."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch.inputs[:, :2], train=train)
        return per_example(logits, batch), ({}, {})


# What a program is made of.


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: xt.TrainerConfig(sead=3), r"TrainerConfig has no field 'sead'. Did you mean 's"),  # type: ignore[call-arg]
        (
            lambda: xt.Config.from_config_dict(xt.TrainerConfig, ConfigDict({"sead": 3})),
            r"TrainerConfig.sead: TrainerConfig has no such field. Did you mean 'seed'",
        ),
        (lambda: make(config={"seed": "3"}), r"trainer.seed: found '3' \(str\), expected a whole"),
        (
            lambda: make(optimizer=zoo.optimizer("adamv")),
            r"optimizer.name: found 'adamv'. Did you mean 'adam'",
        ),
        (
            lambda: make(optimizer=optax.adam),
            r"optimizer: found <function adam .*expected an OptimizerConfig or an optax.Gradient",
        ),
        (
            lambda: make(parallel=xt.ParallelConfig(fsdp_axis_size=3)),
            r"Mesh sizes .* do not fit 8 devices. Give sizes whose product is the device count",
        ),
        (
            lambda: make(arguments={"widht": 3}),
            r"MLP refuses its arguments: .*'widht'. Did you mean 'width'",
        ),
        (
            lambda: make(model=zoo.MLP(width=3)),
            r"found a model, MLP\(...\), expected its class. Give ModelConfig\(model_class=MLP, mo",
        ),
        (
            lambda: make(model=lambda: Nnx()),
            r"found a function that returns an NNX module Nnx, expected its class",
        ),
        (lambda: make(model=Nnx()), r"found a model, Nnx\(...\), expected its class"),
        (lambda: make(model=object), r"found object, which has no init and apply"),
        (
            lambda: make(config={"callbacks": [xt.ModelCheckpointConfig()]}),
            r"ModelCheckpoint: found no folder, .*Set LoggerConfig\(log_path=...\)",
        ),
        (
            lambda: make(config={"logger": zoo.file_logger(Path("/proc/nowhere/run"))}),
            r"log_path: found '/proc/nowhere/run', where nothing can be written",
        ),
        (
            lambda: make(batch=xt.Batch(inputs=np.zeros((8, 4)), targets=np.zeros(7, np.int32))),
            r"leaves with different leading axes \(inputs: \(8, 4\), targets: \(7,\)\), expected",
        ),
        (
            lambda: make(batch=(np.zeros((8, 4)), np.zeros(8))),
            r"Found a batch of type tuple, expected a key or an attribute 'inputs'. Override batch",
        ),
    ],
)
def test_a_program_that_cannot_be_set_up(mistake: Callable[[], Any], said: str) -> None:
    text = told(mistake)
    assert re.search(said, message(text)), text


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = xt.LoggerConfig(log_path=str(tmp_path), log_tools=[WandBLoggerConfig()])
    text = told(lambda: make(config={"logger": logger}))
    assert message(text).endswith('Install it with: pip install "xtrainer[wandb]"')


# The loss.


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (per_example, r"returned an array of shape \(8,\), expected \(loss, \(metrics, mutable_va"),
        (
            lambda logits, batch: (logits.mean(), {}, {}),
            r"loss_function returned a tuple of 3, ",
        ),
        (
            lambda logits, batch: (logits.mean(), {"mean": logits.mean()}),
            r"returned \(loss, a dict\), expected .* Write: return loss, \(metrics, {}\)",
        ),
        (
            lambda logits, batch: (logits.T, ({}, {})),
            r"the loss has the shape \(3, 8\) for a batch of 8 rows, expected a scalar or an array",
        ),
        (
            lambda logits, batch: (logits.mean(), ({"a": [1.0, 2.0]}, {})),
            r"the metric 'a' has the shape \(2,\) for a batch of 8 rows",
        ),
        (
            lambda logits, batch: (logits.mean(), ({"a": "good"}, {})),
            r"the metric 'a' is a str, expected an array: a scalar, one value per example, or",
        ),
        (
            lambda logits, batch: (logits.mean(), (["a"], {})),
            r"Metrics and mutable variables are list and dict, expected two dictionaries",
        ),
    ],
)
def test_a_loss_that_returns_something_else(loss: Callable[..., Any], said: str) -> None:
    text = told(lambda: make(loss))
    assert re.search(said, message(text)), text


@pytest.mark.parametrize(
    ("trainer_class", "said"),
    [
        (NoLoss, r"NoLoss must define loss_function\(self, params, apply_fn, batch, rng, train=T"),
        (Misnamed, r"must define loss_function\(.*\). It has loss_fn: rename it."),
        (Short, r"Found loss_function\(params, batch\), which cannot be called with \(params, ap"),
        (NoDict, r'The model was given no parameters: call apply_fn\({"params": params}, ...\).'),
        (Cut, r"The model was initialized with inputs of another shape: of what it is given only"),
    ],
)
def test_a_loss_that_cannot_be_called(trainer_class: Any, said: str) -> None:
    text = told(lambda: make(trainer_class=trainer_class))
    assert re.search(said, message(text)), text


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, batch: (float(logits.mean()), ({}, {})),
        lambda logits, batch: (np.asarray(logits).mean(), ({}, {})),
        lambda logits, batch: (logits.mean() if logits.mean() > 0 else 0.0, ({}, {})),
    ],
)
def test_a_loss_that_asks_for_numbers(loss: Callable[..., Any]) -> None:
    text = told(lambda: make(loss))
    assert "in <lambda>" in text  # the line at fault stands above
    assert "Use jax.numpy in place of numpy and jnp.where in place of if" in message(text)


def test_a_wrong_name_in_the_loss_is_told_with_the_names_there_are() -> None:
    text = told(lambda: make(lambda logits, batch: (batch.labels, ({}, {}))))
    assert "'Batch' object has no attribute 'labels'" in message(text)
    assert "tried with a batch of inputs float32[8, 4], targets int32[8]." in message(text)


# The model.


@pytest.mark.parametrize(
    ("model", "loss", "said"),
    [
        (Multiplying, None, r"initialized with an input of float32\[8, 4\]\.$"),
        (Needing, None, r"Give other arguments a default, let batch_to_input return a tuple, or"),
        (Flat, None, r"Let the model's __call__ take train=True, or do not pass it on.$"),
        (
            Dropping,
            lambda logits, batch: (per_example(logits, batch), ({}, {})),
            r'The model draws random numbers: call apply_fn\(..., rngs={"dropout": rng}\).$',
        ),
    ],
)
def test_a_model_that_cannot_be_called(model: Any, loss: Any, said: str) -> None:
    text = told(lambda: make(loss, model))
    assert re.search(said, message(text)), text


def test_the_line_of_the_model_that_fails_is_shown_last() -> None:
    lines = told(lambda: make(model=Multiplying)).splitlines()
    (called,) = [number for number, line in enumerate(lines) if line.endswith("in __call__")]
    assert "return x @ self.param" in lines[called + 1]
    assert not any("File" in line for line in lines[called + 1 :])


def test_whole_numbers_as_inputs_train() -> None:
    batch = xt.Batch(inputs=np.zeros((8, 4), np.uint8), targets=np.zeros(8, np.int32))
    assert make(batch=batch).init_train_metrics()


# The data and the checkpoints of a trainer that stands.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trainer with a checkpoint of its first step."""
    folder = tmp_path_factory.mktemp("run")
    logger = xt.LoggerConfig(log_path=str(folder), log_tools=[])
    config = {"logger": logger, "callbacks": [xt.ModelCheckpointConfig(monitor="accurcy")]}
    trainer = make(config=config, arguments={"width": 4})
    batches = [zoo.classification_data(8)]
    text = told(lambda: trainer.train_model(batches, batches, num_train_steps=1))
    return SimpleNamespace(trainer=trainer, folder=folder, text=text)


def test_a_metric_that_is_not_there(run: SimpleNamespace) -> None:
    assert re.search(
        r"monitors 'accurcy', which is not among the metrics of step 1 \(saved without it\). Did "
        "you mean 'accuracy'",
        message(run.text),
    )


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ([], r"The 'train' loader gave no batch after step 1.* It is empty, or an iterator that"),
        (42, r"Found a int as the 'train' loader, expected an iterable of batches. Give it __iter"),
        (zoo.loader, r"Found a function as the 'train' loader, .* Call it, if it returns one."),
        (
            zoo.classification_data(8),
            r"Found a Batch as the 'train' loader, .* goes into a list, or an ArrayLoader.",
        ),
        (
            [zoo.classification_data(8).replace(inputs=np.zeros((8, 9), np.float32))],
            r"differs from the example batch .* found float32\[rows, 9\], expected float32\[rows",
        ),
        (
            [zoo.classification_data(8).replace(targets=np.zeros(7, np.int32))],
            r"leaves with different leading axes",
        ),
    ],
)
def test_a_loader_that_is_none(run: SimpleNamespace, loader: Any, said: str) -> None:
    text = told(lambda: run.trainer.train_model(loader, num_train_steps=9, resume="never"))
    assert re.search(said, message(text)), text


def test_a_run_without_an_end(run: SimpleNamespace) -> None:
    text = told(lambda: run.trainer.train_model([zoo.classification_data(8)]))
    assert "found neither of num_epochs and num_train_steps, expected exactly one" in message(text)


def test_a_batch_that_does_not_divide_into_micro_batches() -> None:
    trainer = make(config={"gradient_accumulate_steps": 2})
    batches = [zoo.classification_data(7)]
    text = told(lambda: trainer.train_model(batches, num_epochs=1))
    assert "A batch of 7 rows does not divide into gradient_accumulate_steps=2" in message(text)


def test_a_batch_that_does_not_divide_over_the_devices() -> None:
    def mean(logits: Any, batch: Any) -> Any:
        return per_example(logits, batch).mean(), ({}, {})

    trainer = make(mean, parallel=xt.ParallelConfig())
    text = told(lambda: trainer.train_model([zoo.classification_data(7)], num_epochs=1))
    assert re.search(r"batch of 7 rows .*8", message(text)), text


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            lambda run: run.trainer.load_pretrained_model("/nowhere/run"),
            r"/nowhere/run: found no checkpoint. /nowhere/run is not there; check the path.",
        ),
        (
            lambda run: zoo.Classifier.load_from_checkpoint("/nowhere/run"),
            r"/nowhere/run: found no checkpoint",
        ),
        (lambda run: zoo.Classifier.from_run("/nowhere/run"), r"/nowhere/run: found no checkpoint"),
        (
            lambda run: make(arguments={"width": 3}).load_pretrained_model(run.folder),
            r"params/.*: shape \(4, 4\) in the checkpoint, \(4, 3\) wanted .*Restore with the mod",
        ),
        (
            lambda run: make(model=Dropping).load_pretrained_model(run.folder),
            r"expected none: +- params/.*: unexpected, only the checkpoint has it",
        ),
        (
            lambda run: Bare.load_from_checkpoint(run.folder),
            r"model is 'MLP', which is not registered under a name, .* Pass model_class=, set the",
        ),
    ],
)
def test_a_checkpoint_that_is_none_or_of_another_model(
    run: SimpleNamespace, mistake: Callable[[Any], Any], said: str
) -> None:
    text = told(lambda: mistake(run))
    assert re.search(said, message(text)), text


class Bare(zoo.Classifier):
    """A trainer that does not name its model."""

    model_class = None


def test_numbers_that_are_none_are_told_where_nobody_has_asked_for_messages(
    run: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    batch = zoo.classification_data(8)
    bad = [batch.replace(inputs=batch.inputs * np.nan)]
    run.trainer.train_model(bad, num_train_steps=9, resume="never")
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("Step 2 was not finite (NaN or Inf in loss, gradients or up" in one for one in said)


# What is kept.


def test_an_error_of_the_users_own_keeps_its_kind_and_its_lines() -> None:
    def broken(logits: Any, batch: Any) -> Any:
        raise KeyError("mine")

    text = told(lambda: make(broken))
    assert text.splitlines()[-2] == "KeyError: 'mine'"
    assert 'raise KeyError("mine")' in text


def test_all_frames_are_there_on_request() -> None:
    jax.config.update("jax_traceback_filtering", "off")
    try:
        make(model=Multiplying)
    except TypeError as error:
        text = "".join(traceback.format_exception(error))
    finally:
        jax.config.update("jax_traceback_filtering", "auto")
    assert OWN.search(text) and LIBRARIES.search(text)


def test_a_fault_of_xtrainer_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtrainer.trainer.parts.batch_spec", None)
    try:
        make()
    except TypeError as error:
        assert OWN.search("".join(traceback.format_exception(error)))


# As a program.

PROGRAM = """
import flax.linen as nn, numpy as np
import xtrainer as xt

class Model(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(3)(x)

class Mine(xt.TrainerModule):
    pass

batch = xt.Batch(inputs=np.zeros((8, 4), np.float32), targets=np.zeros(8, np.int32))
model = xt.ModelConfig(model_class=Model)
Mine(xt.TrainerConfig(logger=None), model, xt.OptimizerConfig(), batch)
"""


def shown(tmp_path: Path, **environment: str) -> list[str]:
    """Returns the lines that the program shows on a terminal."""
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(PROGRAM), encoding="utf-8")
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    result = subprocess.run(
        [sys.executable, str(program)], env=settings, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1
    assert not OWN.search(result.stderr) and not LIBRARIES.search(result.stderr), result.stderr
    return result.stderr.splitlines()


def test_a_program_without_a_loss_ends_with_three_lines_and_a_message(tmp_path: Path) -> None:
    lines = shown(tmp_path)
    assert lines[0] == "Traceback (most recent call last):"
    assert len(lines) == 5
    assert lines[3].startswith("TypeError: Mine must define loss_function(self, params,")


def test_a_gpu_that_jax_is_not_built_for(tmp_path: Path) -> None:
    last = shown(tmp_path, JAX_PLATFORMS="cuda")[-1]
    assert re.match(
        r"xtrainer.errors.DeviceError: JAX cannot start the devices it is asked for, "
        r"JAX_PLATFORMS='cuda'.*pip install \"xtrainer\[cuda13\]\".*set JAX_PLATFORMS=cpu",
        last,
    )

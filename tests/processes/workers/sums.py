"""Gradients under masks and means of evaluations, where processes have little or nothing to say."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import member
import numpy as np
import optax
import zoo

import xtrainer as xt
from xtrainer.metrics import HostWindow
from xtrainer.metrics.accumulate import COUNT

Batch = dict[str, np.ndarray]

TOKENS, FEATURES, CLASSES = 3, 4, 5
ROWS = 16
"""Rows of a training batch: four for each device of two processes with two each."""
NUM_MASKS = 8
ACCUMULATE = (1, 4)
LARGEST = 40
"""Rows of the largest evaluation set."""
PREDICTED = (1, 2, 7, 12, 13)
"""Rows of the sets that are predicted."""
LOCAL_ROWS = 3
"""Rows that a process gives to a full evaluation batch."""


class Tokens(nn.Module):
    """One linear layer, applied to each token."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(CLASSES)(x)


class Tagger(xt.TrainerModule):
    """The mean loss of the tokens that a mask leaves, and their accuracy."""

    model_class = Tokens
    counts: dict[str, float]
    """By what the metrics of the newest evaluation were divided."""

    def _run_model_eval(self, *args: Any) -> Any:  # type: ignore[override]
        window = super()._run_model_eval(*args)
        host = HostWindow.fetch(window)
        counts = host.columns[:, COUNT].tolist()
        self.counts = dict(zip(host.layout.names, counts, strict=True))
        return window

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, correct = token_loss(apply_fn({"params": params}, batch["inputs"]), batch["targets"])
        rows = jnp.ones_like(batch["mask"][:, 0])
        metrics = {
            "accuracy": {"value": correct, "count": batch["mask"]},
            "rows": {"value": rows, "count": rows},
        }
        return {"value": loss, "count": batch["mask"]}, (metrics, {})


def token_loss(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of every token, and whether it was right."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return loss, logits.argmax(-1) == targets


def examples(rows: int, seed: int = 0) -> Batch:
    """Returns sequences of tokens; a third of the tokens, and every fourth sequence, is masked."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((rows, TOKENS)) < 0.67).astype(np.float32)
    mask[1::4] = 0.0
    mask[0, 0] = 1.0  # a mean of nothing is another matter
    return {
        "inputs": rng.normal(size=(rows, TOKENS, FEATURES)).astype(np.float32),
        "targets": rng.integers(0, CLASSES, (rows, TOKENS)).astype(np.int32),
        "mask": mask,
    }


def masked(number: int) -> Batch:
    """Returns a training batch of a number; from 0 to 3 only that quarter of it has tokens."""
    batch = examples(ROWS, seed=100 + number)
    batch["mask"][0, 0] = 0.0
    if number < 4:
        quarter = np.arange(ROWS) // (ROWS // 4)
        batch["mask"] *= (quarter == number)[:, None]
    batch["mask"][4 * (number % 4) + 2, number % TOKENS] = 1.0
    return batch


class Kept(NamedTuple):
    """The optimizer state of :func:`keeping`."""

    gradient: Any


def keeping() -> optax.GradientTransformation:
    """Returns an optimizer that changes nothing and keeps the last gradient as its state."""

    def update(gradient: Any, state: Kept, params: Any = None) -> tuple[Any, Kept]:
        return jax.tree.map(jnp.zeros_like, gradient), Kept(gradient)

    return optax.GradientTransformation(lambda p: Kept(jax.tree.map(jnp.zeros_like, p)), update)


def make_trainer(accumulate: int = 1, **kwargs: Any) -> Any:
    """Returns a trainer that keeps its gradients."""
    batch, optimizer = examples(ROWS), keeping()
    config = {"gradient_accumulate_steps": accumulate, **kwargs}
    return zoo.make_trainer(Tagger, optimizer=optimizer, batch=batch, **config)


def gradients(own: member.Member) -> dict[str, Any]:
    """Returns the gradient of every masked batch, with and without accumulation."""
    found: dict[str, Any] = {}
    for accumulate in ACCUMULATE:
        trainer = make_trainer(accumulate)
        found["params"] = member.leaves(trainer.state.params)
        for number in range(NUM_MASKS):
            batches = xt.ArrayLoader(masked(number), batch_size=ROWS)
            trainer.train_model(batches, num_train_steps=number + 1)
            key = f"{accumulate}/{number}"
            found[key] = member.leaves(trainer.state.opt_state.gradient)
    return found


DEALS: dict[str, Callable[[int, int, int], list[int]]] = {
    "in turn": lambda rows, i, n: list(range(i, rows, n)),
    "all to the first": lambda rows, i, n: list(range(rows)) if i == 0 else [],
    "one to the first": lambda rows, i, n: _uneven(rows, i, n),
}
"""Who evaluates which rows: of so many rows, this process's of so many processes."""


def _uneven(rows: int, i: int, n: int) -> list[int]:
    if n == 1:
        return list(range(rows))
    return list(range(min(rows, 1))) if i == 0 else list(range(i, rows, n - 1))


def evaluations(own: member.Member) -> dict[str, Any]:
    """Returns sums and counts for 1 to 40 rows, dealt out in several ways."""
    trainer = make_trainer()
    found: dict[str, Any] = {"params": member.leaves(trainer.state.params)}
    for deal, rows_of in DEALS.items():
        for rows in range(1, LARGEST + 1):
            mine = rows_of(rows, own.index, own.count)
            part = jax.tree.map(lambda x, mine=mine: x[mine], examples(rows, seed=rows))
            batches = [
                jax.tree.map(lambda x, at=at: x[at : at + LOCAL_ROWS], part)
                for at in range(0, len(mine), LOCAL_ROWS)
            ]
            means = trainer.eval_model(batches)
            found[f"{deal}/{rows}"] = {"means": means, "counts": trainer.counts}
    return found


def first_inputs(params: Any, apply_fn: Any, batch: Batch, rng: Any) -> Any:
    """Returns what tells the rows of a batch apart."""
    return batch["inputs"][:, 0, 0]


class Dealt(xt.DataModule):
    """This process's rows of a set, which the main process alone has written."""

    def __init__(self, own: member.Member, rows: int, deal: str) -> None:
        self.own, self.rows, self.deal = own, rows, deal
        self.path = own.folder / f"{rows} {deal}.npy"
        self.prepared = 0

    def prepare_data(self) -> None:
        """Writes the inputs."""
        time.sleep(0.05)  # others that do not wait would come too early
        self.prepared += 1
        np.save(self.path, examples(self.rows, seed=self.rows)["inputs"])

    def setup(self, phase: xt.Phase) -> None:
        """Reads those of this process."""
        mine = DEALS[self.deal](self.rows, self.own.index, self.own.count)
        self.inputs = np.load(self.path)[mine]

    def predict_loader(self) -> Any:
        """Returns them in batches."""
        cuts = range(0, len(self.inputs), LOCAL_ROWS)
        return [{"inputs": self.inputs[at : at + LOCAL_ROWS]} for at in cuts]


def predictions(own: member.Member) -> dict[str, Any]:
    """Returns what is predicted of some numbers of rows, dealt out in several ways."""
    trainer, prepared = make_trainer(), 0
    found: dict[str, Any] = {}
    for deal in DEALS:
        for rows in PREDICTED:
            module = Dealt(own, rows, deal)
            found[f"{deal}/{rows}"] = trainer.predict(module, first_inputs).tolist()
            prepared += module.prepared
    own.record("prepared", prepared)
    return found


def online(own: member.Member) -> dict[str, Any]:
    """Returns the means and the gradient of a pass over new data, and those of an epoch."""
    trainer = make_trainer()
    loader = lambda: xt.ArrayLoader(examples(2 * ROWS + 3), ROWS, shuffle=True)  # noqa: E731
    found: dict[str, Any] = {"means": trainer.train_online(loader())}
    found["gradient"] = member.leaves(trainer.state.opt_state.gradient)
    found["counted"] = [trainer.global_step, trainer.progress.epochs_done]
    results = trainer.train_model(loader(), loader(), num_epochs=1)
    found["same"] = member.leaves(trainer.state.opt_state.gradient)
    found["loss"] = results["val_epoch_1"]["loss"]
    return found


if __name__ == "__main__":
    scenarios = (gradients, evaluations, predictions, online)
    member.play_all({scenario.__name__: scenario for scenario in scenarios})

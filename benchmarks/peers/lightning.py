"""Lightning: ``Trainer.fit`` against a hand-written loop in eager PyTorch."""

import functools
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from benchmarks.models import Task
from benchmarks.peers.peer import Course, Evaluate, Peer, Trained
from benchmarks.peers.torch_loop import (
    bare_evaluate,
    find_device,
    loss_of,
    make_bare,
    make_loader,
    make_optimizer,
    on_host,
    synchronize,
    use_one_thread,
)
from benchmarks.peers.torch_models import make_model
from benchmarks.peers.turns import Turns

NOTE = "eager PyTorch, one thread, on both sides"


class Classifier(lightning.LightningModule):
    """The model of a task as Lightning wants it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.net = task, make_model(task)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Returns the loss, which is logged."""
        inputs, targets = batch
        loss = loss_of(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs mean loss and accuracy."""
        inputs, targets = batch
        logits = self.net(inputs)
        accuracy = (logits.argmax(-1) == targets).float().mean()
        self.log_dict({"loss": loss_of(logits, targets), "accuracy": accuracy})

    def configure_optimizers(self) -> Any:
        """Returns Adam."""
        return make_optimizer(self.task, self.net)


class TurnsCallback(lightning.Callback):
    """Ends a turn where one is due, and begins the next."""

    def __init__(self, turns: Turns, batches: int) -> None:
        self.turns, self.batches = turns, batches

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts batches."""
        if (batch_idx + 1) % self.batches == 0:
            self.turns.change(None)


class Timed(lightning.Callback):
    """Notes when each step begins."""

    def __init__(self, turns: Turns) -> None:
        self.next_of = turns.timed

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the time."""
        next(self.next_of((None,)))


def make_trainer(**options: Any) -> lightning.Trainer:
    """Returns a trainer without progress bar and summary."""
    return lightning.Trainer(
        devices=1, enable_progress_bar=False, enable_model_summary=False, **options
    )


def train(task: Task, course: Course) -> Trained:
    """Trains both in turn."""
    use_one_thread()
    module, bare = Classifier(task), make_bare(task, course)
    turns = Turns(bare, course.steps, lambda state: synchronize(bare.device))
    callbacks: list[Any] = [TurnsCallback(turns, course.steps * course.pieces)]
    if course.saves:
        folder, every = course.folder / "saved", 2 * course.steps
        callbacks += [Timed(turns), ModelCheckpoint(folder, every_n_train_steps=every)]
    trainer = make_trainer(
        max_steps=course.total,
        accumulate_grad_batches=course.pieces,
        logger=CSVLogger(course.folder),
        log_every_n_steps=course.log_every,
        callbacks=callbacks,
        enable_checkpointing=course.saves,
    )
    trainer.fit(module, make_loader(task, course.pieces))
    return Trained(turns, on_host(module.net), on_host(bare.model))


def evaluators(task: Task) -> tuple[Evaluate, Evaluate]:
    """Returns the bare evaluation and ``Trainer.validate``."""
    use_one_thread()
    module = Classifier(task)
    trainer = make_trainer(logger=False, enable_checkpointing=False)
    loader = functools.cache(lambda length: make_loader(task, length=length))

    def run(length: int) -> tuple[float, float]:
        (found,) = trainer.validate(module, loader(length), verbose=False)
        return found["loss"], found["accuracy"]

    return bare_evaluate(task, make_model(task).to(find_device())), run


ONE_DEVICE = "PyTorch has one CPU device in a process"
PEER = Peer(
    name="lightning",
    train=train,
    evaluators=evaluators,
    note=f"{NOTE}; without progress bar and checkpoints",
    missing={"devices": ONE_DEVICE},
    bare_start="benchmarks.starts.torch",
    keeps_compiled=False,
    checkpoint="Bare: torch.save of the same state, one file kept; both sides wait for the disk.",
)

"""Lightning: ``Trainer.fit`` against a hand-written loop in eager PyTorch."""

import tempfile
import time
from typing import Any

import lightning
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from benchmarks.measure import Pairs, Row
from benchmarks.peers import CASE, STEPS
from benchmarks.peers.torch_loop import (
    TorchLoop,
    make_loader,
    make_model,
    make_optimizer,
    synchronize,
    use_one_thread,
)

LOG_EVERY = 50


class Classifier(lightning.LightningModule):
    """The tiny network as Lightning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_model()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Returns the loss, which is logged."""
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Returns Adam."""
        return make_optimizer(self.net)


class Turns(lightning.Callback):
    """Takes turns with a bare loop, as ``benchmarks.against.Turns`` does."""

    def __init__(self, bare: TorchLoop, steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.bare_s: list[float] = []
        self.lightning_s: list[float] = []
        self.start: float | None = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a turn where one is due, and begins the next."""
        if (batch_idx + 1) % self.steps:
            return
        synchronize(self.bare.device)
        if self.start is not None:
            self.lightning_s.append((time.perf_counter() - self.start) / self.steps)
        seconds = self.bare.run(self.steps) / self.steps
        if self.start is not None:
            self.bare_s.append(seconds)
        self.start = time.perf_counter()


def run(repeats: int, steps: int = STEPS) -> tuple[Pairs, Classifier, TorchLoop]:
    """Trains both in turn; returns seconds a step, the module and the loop."""
    use_one_thread()
    module, bare = Classifier(), TorchLoop()
    turns = Turns(bare, steps)
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        trainer = lightning.Trainer(
            max_steps=steps * (repeats + 2),
            devices=1,
            logger=CSVLogger(folder),
            log_every_n_steps=LOG_EVERY,
            callbacks=[turns],
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, make_loader())
    return Pairs(turns.bare_s[1:], turns.lightning_s[1:]), module, bare


def measure(repeats: int) -> list[Row]:
    """Returns the row of ``fit``."""
    note = "eager PyTorch, one thread, on both sides; without progress bar and checkpoints"
    return [run(repeats)[0].row("mlp", CASE, who="lightning", note=note)]

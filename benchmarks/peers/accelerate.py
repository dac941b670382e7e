"""Accelerate: its prepared loop against the same loop without it."""

import time
from typing import Any

from accelerate import Accelerator
from torch import nn

from benchmarks.measure import Pairs, Row, interleave
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


class PreparedLoop:
    """The loop that Accelerate's guide shows, with a look at the loss every 50 steps."""

    def __init__(self) -> None:
        self.accelerator = Accelerator()
        model = make_model()
        self.model, self.optimizer, loader = self.accelerator.prepare(
            model, make_optimizer(model), make_loader()
        )
        self.batches = iter(loader)
        self.steps = 0
        self.logged: list[float] = []

    def run(self, steps: int) -> float:
        """Takes some steps and returns their seconds."""
        start = time.perf_counter()
        for _ in range(steps):
            inputs, targets = next(self.batches)
            with self.accelerator.accumulate(self.model):
                loss = nn.functional.cross_entropy(self.model(inputs), targets)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.steps += 1
            if self.steps % LOG_EVERY == 0:
                self.logged.append(loss.item())
        synchronize(self.accelerator.device)
        return time.perf_counter() - start


def run(repeats: int, steps: int = STEPS) -> tuple[Pairs, Any, TorchLoop]:
    """Trains both in turn; returns seconds a step and both loops."""
    use_one_thread()
    prepared, bare = PreparedLoop(), TorchLoop()
    pairs = interleave(
        lambda: bare.run(steps) / steps, lambda: prepared.run(steps) / steps, repeats
    )
    return pairs, prepared, bare


def measure(repeats: int) -> list[Row]:
    """Returns the row of the prepared loop."""
    return [
        run(repeats)[0].row(
            "mlp", CASE, who="accelerate", note="eager PyTorch, one thread, on both sides"
        )
    ]

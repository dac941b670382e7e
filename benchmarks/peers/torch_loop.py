"""The bare side of peers on PyTorch: the tiny network in an eager loop written by hand."""

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.models import rows_of
from benchmarks.peers import CLASSES, LEARNING_RATE, ROWS, WIDTH


def find_device() -> torch.device:
    """Returns the first accelerator, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def make_model() -> nn.Module:
    """Returns the tiny network; always the same one."""
    torch.manual_seed(0)
    hidden = [part for _ in range(4) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Returns Adam."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)


class Endless(IterableDataset):
    """Ready batches of tensors, over and over."""

    def __init__(self) -> None:
        self.batches = [
            (torch.from_numpy(batch["inputs"]), torch.from_numpy(batch["targets"]).long())
            for batch in rows_of(WIDTH, CLASSES, ROWS)
        ]

    def __iter__(self) -> Iterator[Any]:
        """Starts again with the first batch."""
        return cycle(self.batches)


def make_loader() -> DataLoader:
    """Returns a loader of ready batches."""
    return DataLoader(Endless(), batch_size=None)


def synchronize(device: torch.device) -> None:
    """Waits for everything that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def use_one_thread() -> None:
    """Makes PyTorch compute with one thread: such small arrays gain nothing from more."""
    torch.set_num_threads(1)


class TorchLoop:
    """A hand-written eager loop; its loss stays on the device.

    Attributes:
        model: Trained in place.
        loss: Of the newest step.
    """

    def __init__(self) -> None:
        self.device = find_device()
        self.model = make_model().to(self.device)
        self.optimizer = make_optimizer(self.model)
        self.batches = iter(make_loader())
        self.loss: Any = None

    def run(self, steps: int) -> float:
        """Takes some steps and returns their seconds, until the last of them has ended."""
        start = time.perf_counter()
        for _ in range(steps):
            inputs, targets = next(self.batches)
            logits = self.model(inputs.to(self.device))
            loss = nn.functional.cross_entropy(logits, targets.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loss = loss.detach()
        synchronize(self.device)
        return time.perf_counter() - start

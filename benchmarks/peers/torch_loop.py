"""The bare side of peers on PyTorch: an eager loop written by hand, and what adapters share."""

import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.models import Task
from benchmarks.peers.peer import Course, Evaluate, in_pieces
from benchmarks.peers.torch_models import make_model
from benchmarks.saving import longest_stall


def find_device() -> torch.device:
    """Returns the first accelerator, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def make_optimizer(task: Task, model: nn.Module) -> torch.optim.Optimizer:
    """Returns Adam."""
    return torch.optim.Adam(model.parameters(), lr=task.rate, eps=task.epsilon)


def loss_of(logits: Any, targets: Any) -> Any:
    """Returns the mean loss of a batch."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


class Ready(IterableDataset):
    """Ready batches of tensors: over and over, or as many as asked for."""

    def __init__(self, task: Task, pieces: int = 1, length: int | None = None) -> None:
        self.length = length
        self.batches = [
            (torch.from_numpy(batch["inputs"]), torch.from_numpy(batch["targets"]).long())
            for batch in in_pieces(task, pieces)
        ]

    def __iter__(self) -> Iterator[Any]:
        """Starts again with the first batch."""
        if self.length is None:
            return cycle(self.batches)
        endless = cycle(self.batches)
        return (next(endless) for _ in range(self.length))


def make_loader(task: Task, pieces: int = 1, length: int | None = None) -> DataLoader:
    """Returns a loader of ready batches."""
    return DataLoader(Ready(task, pieces, length), batch_size=None)


def synchronize(device: torch.device) -> None:
    """Waits for everything that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def use_one_thread() -> None:
    """Makes PyTorch compute with one thread, on both sides."""
    torch.set_num_threads(1)


def on_host(model: nn.Module) -> list[np.ndarray]:
    """Returns copies of the parameters in the host's memory."""
    return [array.detach().cpu().numpy().copy() for array in model.parameters()]


class TorchLoop:
    """A hand-written eager loop; its loss stays on the device.

    Attributes:
        model: Trained in place.
        loss: Of the newest step.
    """

    def __init__(self, task: Task, pieces: int = 1) -> None:
        self.device, self.pieces = find_device(), pieces
        self.model = make_model(task).to(self.device)
        self.optimizer = make_optimizer(task, self.model)
        self.batches = iter(make_loader(task, pieces))
        self.loss: Any = None

    def run(self, steps: int) -> float:
        """Takes some steps and returns their seconds, until the last of them has ended."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize(self.device)
        return time.perf_counter() - start

    def step(self) -> None:
        """Takes a step."""
        self.optimizer.zero_grad()
        for _ in range(self.pieces):
            inputs, targets = next(self.batches)
            loss = loss_of(self.model(inputs.to(self.device)), targets.to(self.device))
            (loss if self.pieces == 1 else loss / self.pieces).backward()
        self.optimizer.step()
        self.loss = loss.detach()


class SavingTorchLoop(TorchLoop):
    """A hand-written loop that saves at the beginning of every other turn.

    Attributes:
        file: Where the newest state is; written beside it first.
        turns: Turns so far.
        stalls_s: The longest stall of a step in each of them.
    """

    def __init__(self, task: Task, file: Path) -> None:
        super().__init__(task)
        self.file = file
        self.turns = 0
        self.stalls_s: list[float] = []

    def run(self, steps: int) -> float:
        """Takes a turn, which begins with a save where its number is even."""
        times = [time.perf_counter()]
        if self.turns % 2 == 0:
            self.save()
        self.turns += 1
        for _ in range(steps):
            self.step()
            times.append(time.perf_counter())
        synchronize(self.device)
        self.stalls_s.append(longest_stall(times))
        return time.perf_counter() - times[0]

    def save(self) -> None:
        """Writes parameters and moments."""
        beside = self.file.with_suffix(".part")
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(states, beside)
        beside.rename(self.file)

    def read(self) -> None:
        """Reads the newest of what was saved."""
        states = torch.load(self.file, map_location=self.device)
        self.model.load_state_dict(states["model"])
        self.optimizer.load_state_dict(states["optimizer"])
        synchronize(self.device)

    def make_room(self) -> None:
        """Does nothing: what is read replaces what there is, array by array."""

    def close(self) -> None:
        """Does nothing: no file is open."""


def make_bare(task: Task, course: Course) -> TorchLoop:
    """Returns the hand-written loop of a course."""
    if course.saves:
        return SavingTorchLoop(task, course.folder / "bare.pt")
    return TorchLoop(task, course.pieces)


def bare_evaluate(task: Task, model: nn.Module) -> Evaluate:
    """Returns a hand-written evaluation: mean loss and accuracy over some batches."""
    device = find_device()
    loaders: dict[int, DataLoader] = {}

    def run(length: int) -> tuple[float, float]:
        sums = torch.zeros(3, device=device)
        with torch.inference_mode():
            for inputs, targets in loaders.setdefault(length, make_loader(task, length=length)):
                logits, targets = model(inputs.to(device)), targets.to(device)
                correct = (logits.argmax(-1) == targets).sum()
                count = torch.tensor(float(targets.numel()), device=device)
                sums += torch.stack([loss_of(logits, targets) * count, correct, count])
        loss, accuracy, count = sums.tolist()
        return loss / count, accuracy / count

    return run

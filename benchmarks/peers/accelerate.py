"""Accelerate: its prepared loop against the same loop without it."""

import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from benchmarks.models import Task
from benchmarks.peers.peer import Course, Peer, Trained
from benchmarks.peers.torch_loop import (
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


class PreparedLoop:
    """The loop that Accelerate's guide shows, with a look at the loss every 50 steps."""

    def __init__(self, task: Task, course: Course) -> None:
        self.accelerator = Accelerator(gradient_accumulation_steps=course.pieces)
        model = make_model(task)
        self.model, self.optimizer, loader = self.accelerator.prepare(
            model, make_optimizer(task, model), make_loader(task, course.pieces)
        )
        self.batches = iter(loader)
        self.log_every = course.log_every * course.pieces
        self.done = 0
        self.logged: list[float] = []

    def run(self, batches: int) -> None:
        """Takes the steps of so many batches."""
        for _ in range(batches):
            inputs, targets = next(self.batches)
            with self.accelerator.accumulate(self.model):
                loss = loss_of(self.model(inputs), targets)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.done += 1
            if self.done % self.log_every == 0:
                self.logged.append(loss.item())


def train(task: Task, course: Course) -> Trained:
    """Trains both in turn."""
    use_one_thread()
    prepared, bare = PreparedLoop(task, course), make_bare(task, course)
    device, saved = prepared.accelerator.device, str(Path(course.folder, "saved"))
    turns = Turns(bare, course.steps, lambda state: synchronize(device))
    for turn in range(course.turns):
        if course.saves and turn % 2 == 0:
            turns.asked.append(time.perf_counter())
            prepared.accelerator.save_state(saved)
        for _ in range(course.steps):
            turns.asked.append(time.perf_counter())
            prepared.run(course.pieces)
        turns.change(None)

    def restore() -> Any:
        prepared.accelerator.load_state(saved)
        synchronize(device)

    return Trained(turns, on_host(prepared.model), on_host(bare.model), restore)


PEER = Peer(
    name="accelerate",
    train=train,
    note="eager PyTorch, one thread, on both sides",
    missing={
        "devices": "PyTorch has one CPU device in a process",
        "evaluation": "Accelerate has no evaluation of its own",
    },
    bare_start="benchmarks.starts.torch",
    keeps_compiled=False,
    checkpoint="Bare: torch.save of the same state, one file kept; both sides wait for the disk.",
)

"""Two shrunk experiments on meshes that span processes: the order, the losses and the end.

A scenario is named ``KIND-MESH-ACCUMULATE-OPTIMIZER-STEPS``, or that with ``-EVERY-MOST``: the
steps of a row, and those of a dispatch at most.
"""

import hashlib
import sys
from typing import Any

import jax
import member
import mesh_zoo as mz
import numpy as np
import probes
import zoo

import xtrainer as xt

MESHES: dict[str, dict[str, int]] = {
    "dp": {},
    "dp_fsdp": {"fsdp_axis_size": 2},
    "fsdp": {"data_axis_size": 1, "fsdp_axis_size": -1},
    "dp_tp": {"model_axis_size": 2},
    "tp": {"data_axis_size": 1, "model_axis_size": -1},
}
"""Axis sizes by name, for any number of devices."""

KINDS = {**mz.KINDS, "small": (mz.MaskedLM, {**mz.LM_MODEL, "num_layers": 1}, *mz.KINDS["lm"][2:])}
"""The experiments, and the LM with one layer: in a run of processes each compiles every step."""

EXAMPLES = {"lm": 150, "small": 150, "cnn": 160}
"""The last batch of a pass of the LM has 22 rows, so that of four processes one has none of it."""


def loader(kind: str) -> xt.ArrayLoader:
    """Returns the whole batches of a kind, shuffled anew for each pass."""
    examples = KINDS[kind][3](EXAMPLES[kind])
    return xt.ArrayLoader(examples, batch_size=mz.ROWS, shuffle=True, seed=3)


def make_trainer(kind: str, mesh: str, accumulate: int, optimizer: str, **config: Any) -> Any:
    """Returns a trainer on a mesh of all devices of all processes, or on ``"1"`` device."""
    trainer_class, model, rules, examples = KINDS[kind]
    parallel = None
    if mesh != "1":
        sizes = MESHES[mesh]
        rules = rules if "model_axis_size" in sizes else ()
        parallel = xt.ParallelConfig(**sizes, fsdp_min_weight_size=1, param_rules=rules)
    trainer = zoo.make_trainer(
        trainer_class,
        model,
        mz.OPTIMIZERS[optimizer],
        batch={name: array[: mz.ROWS] for name, array in examples().items()},
        mesh=zoo.devices(1) if mesh == "1" else None,
        parallel=parallel,
        gradient_accumulate_steps=accumulate,
        **{"logger": xt.LoggerConfig(log_every_n_steps=1, log_tools=[]), **config},
    )
    trainer.logger = probes.Memory()
    return trainer


def variables_of(trainer: Any) -> list[np.ndarray]:
    """Returns parameters and mutable collections, whole."""
    tree = {"params": trainer.state.params, **trainer.state.mutable_variables}
    return jax.tree.leaves(member.whole(tree))


def digest(arrays: list[np.ndarray]) -> str:
    """Returns a sum of every bit."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def note_dispatches(trainer: Any) -> list[int]:
    """Returns a list that is told how many steps each dispatch of several takes."""
    sizes: list[int] = []
    executor = trainer.compiled_train_step
    many = executor.many

    def noted(state: Any, batches: Any, *rest: Any) -> Any:
        sizes.append(len(batches))
        return many(state, batches, *rest)

    executor.many = noted
    return sizes


def order_of(trainer: Any) -> list[list[float]]:
    """Returns for each step its number and two that tell which examples it took."""
    logged = trainer.logger.rows("train")
    return [[step, row["ids_sum"], row["id_squares_sum"]] for step, row in logged]


def losses_of(trainer: Any) -> list[float]:
    """Returns the mean loss of each step."""
    return trainer.logger.column("loss_mean")


def course(name: str, folder: Any = None) -> dict[str, Any]:
    """Returns what a run did; its end is saved to ``folder`` or returned."""
    kind, mesh, accumulate, optimizer, steps, *more = name.split("-")
    every, most = map(int, more or (1, 1))
    logger = xt.LoggerConfig(log_every_n_steps=every, log_tools=[])
    config: dict[str, Any] = {"logger": logger, "steps_per_dispatch": most}
    trainer = make_trainer(kind, mesh, int(accumulate), optimizer, **config)
    sizes = note_dispatches(trainer)
    trainer.train_model(loader(kind), num_train_steps=int(steps))
    end = variables_of(trainer)
    if folder is not None and jax.process_index() == 0:
        np.savez(folder / f"{name}.npz", *end)
    said = {"order": order_of(trainer), "losses": losses_of(trainer), "digest": digest(end)}
    said |= {"parts": trainer.batch_layout.shard.count, "dispatches": sizes}
    return said if folder is not None else {**said, "end": end}


if __name__ == "__main__":
    names = sys.argv[2:]
    member.play_all({name: lambda m, name=name: course(name, m.folder) for name in names})

"""What does a mesh change? The byte LM on each: differences, memory, what devices send each other.

Every run takes the same steps on virtual CPU devices: losses and final parameters are compared with
those of one device under SGD with momentum; bytes and collectives are those of the Adam step, as
they stand in the compiled program: what a scan over micro-batches repeats is counted once.

Synopsis:
    python benchmarks/meshes.py
    python benchmarks/meshes.py --steps 2 --json table.json
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICES = "--xla_force_host_platform_device_count=8"
HEADER = ("mesh", "loss", "parameters", "params B/device", "optimizer B/device", "collectives")


def measure(mesh: str, steps: int, accumulate: int, reference: Any) -> tuple[dict[str, Any], Any]:
    """Returns the row of one mesh, and the course of its run.

    Args:
        mesh: A name of ``mesh_zoo.MESHES``, or ``"1"``.
        steps: Steps of the run.
        accumulate: Micro-batches of a step.
        reference: The course on one device; None: this is it.
    """
    import mesh_zoo
    import numpy as np
    from hlo_zoo import KINDS, Program

    course = mesh_zoo.Course(mesh_zoo.make_trainer("lm", mesh, accumulate), "lm", steps)
    reference = course if reference is None else reference
    if course.order != reference.order:
        raise SystemExit(
            f"The run on {mesh} took its examples in another order than on one device."
        )
    trainer = mesh_zoo.make_trainer("lm", mesh, accumulate, "adam")
    program = Program(mesh_zoo.compile_step(trainer).as_text())
    sent = {kind: program.collectives(kind) for kind in KINDS}
    row = {
        "mesh": mesh,
        "max_relative_difference_loss": float(np.abs(course.losses / reference.losses - 1).max()),
        "max_relative_difference_params": mesh_zoo.relative_difference(course.end, reference.end),
        "param_bytes_per_device": mesh_zoo.device_bytes(trainer.state.params),
        "optimizer_bytes_per_device": mesh_zoo.device_bytes(trainer.state.opt_state),
        "collectives": {
            kind: {"count": len(found), "bytes": sum(one.num_bytes for one in found)}
            for kind, found in sent.items()
            if found
        },
    }
    return row, course


def table(meshes: Sequence[str], steps: int, accumulate: int) -> list[dict[str, Any]]:
    """Returns a row for one device and for each mesh; all of ``mesh_zoo.MESHES`` where none."""
    import mesh_zoo

    first, reference = measure("1", steps, accumulate, None)
    names = meshes or list(mesh_zoo.MESHES)
    return [first, *(measure(name, steps, accumulate, reference)[0] for name in names)]


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a table in Markdown."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for row in rows:
        sent = [f"{k} {v['count']} ({v['bytes']} B)" for k, v in row["collectives"].items()]
        lines.append(
            (
                row["mesh"],
                f"{row['max_relative_difference_loss']:.1e}",
                f"{row['max_relative_difference_params']:.1e}",
                str(row["param_bytes_per_device"]),
                str(row["optimizer_bytes_per_device"]),
                ", ".join(sent) or "none",
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Compares the byte LM on meshes of CPU devices.")
    parser.add_argument("--steps", type=int, default=50, help="steps of each run")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--meshes", nargs="*", default=[], help="such as 8fsdp; all where left out")
    parser.add_argument("--json", type=Path, help="file that the rows are written to as well")
    arguments = parser.parse_args()
    # Read by JAX when it first looks for devices, which nothing has done so far.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if DEVICES not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "experiments")]
    rows = table(arguments.meshes, arguments.steps, arguments.accumulate)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(show(rows))


if __name__ == "__main__":
    main()

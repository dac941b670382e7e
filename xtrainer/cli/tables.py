"""How is a plan shown? Tables of at most 100 columns, the largest numbers in short units."""

import re
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from xtrainer.cli.screen import (
    make_console,
    make_grid,
    print_indented,
    print_list,
    print_title,
    show_bytes,
    show_digits,
)
from xtrainer.tuning import RunPlan, StepPlan
from xtrainer.tuning.course import Checkpoints
from xtrainer.tuning.layout import ParameterRow

ALIKE = 2
"""From so many parameters on that differ in numbers of their paths alone, they share a line."""

_MEMORY = {
    "parameters": "parameters",
    "optimizer": "optimizer",
    "other_state": "other state",
    "batches": "batches",
    "padding": "padding and metrics",
    "outputs": "outputs",
    "temporaries": "temporaries (activations)",
    "code": "program",
}


def print_plan(plan: RunPlan, name: str, target: str | None, seconds: float) -> None:
    """Prints a plan.

    Args:
        plan: What is shown.
        name: Of the experiment.
        target: The TPU topology that was asked for; None: none.
        seconds: How long planning took.
    """
    console = make_console()
    kind = plan.platform if plan.device_kind == plan.platform else plan.device_kind
    where = f"{plan.num_devices} × {kind}" + (f" ({target})" if target else "")
    console.print(Text(f"{name} on {where}", style="bold"))
    for title, table in (
        ("", _facts(plan)),
        ("parameters", _parameters(plan)),
        ("memory of one device", _memory(plan)),
        ("one step", _work(plan)),
        ("the run", _course(plan)),
    ):
        if title:
            print_title(console, title)
        print_indented(console, table)
    if plan.notes:
        print_title(console, "notes")
        print_list(console, plan.notes)
    end = f"({seconds:.1f} s)"
    if plan.holds:
        console.print(Text(f"\nThe plan holds. {end}", style="bold green"))
    else:
        console.print(Text(f"\nThe plan does not hold: {end}", style="bold red"))
        print_list(console, plan.problems)


def print_problems(name: str, problems: Iterable[str]) -> None:
    """Prints why there is no plan."""
    console = make_console()
    console.print(Text(f"{name}: there is no plan, because:", style="bold red"))
    print_list(console, problems)


def show_flops(count: float) -> str:
    """Returns a number of operations in short.

    Example:
        >>> show_flops(739_771_968.0)
        '740 MFLOP'
    """
    units = ["", "k", "M", "G", "T", "P", "E"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{show_digits(count)} {units[0]}FLOP"


def _facts(plan: RunPlan) -> Table:
    table, batch = make_grid(), plan.batch
    elements = sum(row.elements for row in plan.parameters)
    size = sum(row.num_bytes for row in plan.parameters)
    table.add_row("mesh", ", ".join(f"{name}={size}" for name, size in plan.mesh.items()))
    table.add_row("model", f"{plan.model}: {elements:,} parameters, {show_bytes(size)}")
    pieces = f" in {batch.micro_batches} micro-batches" if batch.micro_batches > 1 else ""
    rows = f"{batch.rows} rows{pieces}, over {batch.shards} devices"
    leaves = ", ".join(f"{path} {what}" for path, what in batch.leaves.items())
    table.add_row("batch", Text(f"{rows}: {leaves}"))
    return table


def _parameters(plan: RunPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    total = sum(row.device_bytes for row in plan.parameters)
    for name, footer in (
        ("parameter", "total"),
        ("shape", ""),
        ("dtype", ""),
        ("layout", ""),
        ("per device", show_bytes(total)),
        ("decided by", ""),
    ):
        number = name == "per device"
        table.add_column(
            name,
            footer=footer,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number or name in ("shape", "dtype"),
            max_width=20 if name == "decided by" else None,
        )
    for row, path, held in _grouped(plan.parameters):
        shape = "×".join(map(str, row.shape)) or "scalar"
        cells = (path, shape, row.dtype, row.spec, show_bytes(held), row.decided_by)
        table.add_row(*map(Text, cells))
    return table


def _grouped(rows: tuple[ParameterRow, ...]) -> Iterable[tuple[ParameterRow, str, int]]:
    """Yields the lines of the table: a row, its path, and the bytes of all that it stands for."""
    groups: dict[Any, list[ParameterRow]] = {}
    for row in rows:
        pattern = re.sub(r"\d+", "*", row.path)
        groups.setdefault((pattern, row.shape, row.dtype, row.spec, row.decided_by), []).append(row)
    for (pattern, *_), group in groups.items():
        if len(group) >= ALIKE:
            yield group[0], f"{len(group)}× {pattern}", sum(r.device_bytes for r in group)
        else:
            yield from ((row, row.path, row.device_bytes) for row in group)


def _both(plan: RunPlan) -> tuple[StepPlan, StepPlan]:
    return plan.train, plan.evaluation


def _step_table(plan: RunPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column(f"training, {plan.train.rows} rows", justify="right")
    table.add_column(f"evaluation, {plan.evaluation.rows} rows", justify="right")
    return table


def _memory(plan: RunPlan) -> Table:
    table = _step_table(plan)
    for field, name in _MEMORY.items():
        sizes = [getattr(step.memory, field) for step in _both(plan)]
        if any(sizes):
            table.add_row(name, *map(show_bytes, sizes))
    if not plan.train.compiled:
        table.add_row("what the compiler adds", "not compiled", "not compiled")
    table.add_section()
    least = "" if plan.train.compiled else "≥ "
    table.add_row("total", *(f"{least}{show_bytes(step.memory.total)}" for step in _both(plan)))
    if plan.memory_limit is not None:
        table.add_row("limit", *(show_bytes(plan.memory_limit) for _ in _both(plan)))
    return table


def _work(plan: RunPlan) -> Table:
    table = _step_table(plan)
    if not plan.train.compiled:
        table.add_row("operations and collectives", "not compiled", "not compiled")
        return table
    operations = [
        "not known" if step.flops is None else show_flops(step.flops) for step in _both(plan)
    ]
    table.add_row("operations, all devices", *operations)
    kinds = dict.fromkeys(c.kind for step in _both(plan) for c in step.collectives)
    for kind in kinds:
        cells = []
        for step in _both(plan):
            found = next((c for c in step.collectives if c.kind == kind), None)
            shown = "–"
            if found is not None:
                least = "" if found.exact else "≥ "
                shown = f"{least}{found.count} ×, {show_bytes(found.num_bytes)}"
            cells.append(shown)
        table.add_row(f"{kind}, per device", *cells)
    if not kinds:
        table.add_row("collectives", "none", "none")
    return table


def _course(plan: RunPlan) -> Table:
    table, schedule = make_grid(), plan.schedule
    unknown = "known when the data is read"
    steps = unknown if schedule.steps is None else f"{schedule.steps:,}"
    epochs = unknown if schedule.epochs is None else f"{schedule.epochs:,}"
    table.add_row("steps", steps)
    table.add_row("epochs", epochs)
    for point in schedule.rates:
        table.add_row("learning rate", f"{point.rate:.4g} at step {point.step:,}, {point.name}")
    for found in plan.checkpoints:
        table.add_row("checkpoints", Text(_kept(found)))
        table.add_row("", Text(found.folder))
    return table


def _kept(found: Checkpoints) -> str:
    each = f"{show_bytes(found.num_bytes)} each"
    if found.kept is None:
        return f"{each}, all are kept; saved at {found.trigger}"
    total = show_bytes(found.kept * found.num_bytes)
    return f"{each}, at most {found.kept} kept ({total}); saved at {found.trigger}"

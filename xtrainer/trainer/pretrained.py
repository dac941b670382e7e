"""Which arrays of another model become which of ours? By path, shape and dtype, or by a map."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from xtrainer.checkpoint import read_meta, restore_partial
from xtrainer.config import Config
from xtrainer.errors import CheckpointError
from xtrainer.optim import forget_average, frozen_patterns, path_mask
from xtrainer.parallel import put_global
from xtrainer.trainer.view import TrainerView
from xtrainer.tree import flatten_with_paths, map_with_paths, matches

_LOG = logging.getLogger(__name__)

PARTS = ("params", "mutable_variables")
_WIDTH = 120
_FINE = ("loaded", "skipped", "not wanted")


@dataclass(frozen=True, kw_only=True)
class PretrainedMap(Config):
    """How the parameters of a checkpoint become those of a model that differs from its own.

    Paths are those of the state, as ``params/Dense_0/kernel``; patterns are globs of a whole path,
    or regular expressions that are searched in it. What is neither loaded nor covered here is an
    error, with all of it in one table.
    """

    rename: list[tuple[str, str]] = field(default_factory=list)
    """Regular expressions and what replaces them in the paths of the checkpoint, one after the
    other: ``("^params/encoder/", "params/backbone/")``."""
    skip: list[str] = field(default_factory=list)
    """Patterns of the model's paths that stay as they were initialized."""
    ignore: list[str] = field(default_factory=list)
    """Patterns of the checkpoint's paths, as renamed, that are not wanted."""
    reshape: list[str] = field(default_factory=list)
    """Patterns of the model's paths whose saved array has another shape of as many elements."""
    cast: list[str] = field(default_factory=list)
    """Patterns of the model's paths whose saved array has another dtype; it is converted."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of the model's paths that stay as they are loaded: ``OptimizerConfig.freeze`` must
    name them too, and what it would train is refused."""

    def problems(self) -> list[str]:
        """Returns regular expressions that cannot be read."""
        found = []
        for pattern, _ in self.rename:
            try:
                re.compile(pattern)
            except re.error as error:
                found.append(f"rename: found {pattern!r}, expected a regular expression ({error}).")
        return found


@dataclass(frozen=True)
class PretrainedRow:
    """What becomes of one array.

    Attributes:
        path: Of the model; of the checkpoint, as renamed, where the model has no such path.
        source: The path in the checkpoint; empty where it has none.
        saved: dtype and shape there.
        wanted: dtype and shape in the model.
        result: ``loaded``, ``skipped``, ``not wanted``, or what is wrong: ``missing``,
            ``unexpected``, ``different shape``, ``different dtype``, ``not frozen``.
        note: ``reshaped``, ``cast`` or ``frozen``.
    """

    path: str
    source: str
    saved: str
    wanted: str
    result: str
    note: str = ""


@dataclass(frozen=True)
class PretrainedReport:
    """What would become, or has become, of every array.

    Attributes:
        rows: By path.
    """

    rows: tuple[PretrainedRow, ...]

    def __str__(self) -> str:
        """Returns the table."""
        return self.table()

    def __repr__(self) -> str:
        """Returns how many arrays have which result."""
        return f"PretrainedReport({self.summary()})"

    @property
    def problems(self) -> list[PretrainedRow]:
        """The rows that no map covers."""
        return [row for row in self.rows if row.result not in _FINE]

    def table(self) -> str:
        """Returns a table, what is wrong first."""
        table = Table(title=self.summary(), title_justify="left")
        for name in ("parameter", "from", "saved", "wanted", "result"):
            table.add_column(name, overflow="fold")
        for row in sorted(self.rows, key=lambda row: (row.result in _FINE, row.path)):
            source = "" if row.source == row.path else row.source
            result = f"{row.result}, {row.note}" if row.note else row.result
            table.add_row(row.path, source, row.saved, row.wanted, result)
        console = Console(width=_WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip()

    def summary(self) -> str:
        """Returns how many arrays have which result."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.result] = counts.get(row.result, 0) + 1
        return ", ".join(f"{count} {result}" for result, count in counts.items())


def compare(
    saved: Mapping[str, Any],
    model: Mapping[str, Any],
    param_map: PretrainedMap,
    frozen: Collection[str] = (),
) -> PretrainedReport:
    """Returns what becomes of every array of a checkpoint and of a model.

    Args:
        saved: ``shape`` and ``dtype`` of the checkpoint's arrays by path.
        model: Anything with ``shape`` and ``dtype``, by path.
        param_map: What may differ.
        frozen: Paths of the model that the optimizer leaves as they are.

    Raises:
        CheckpointError: If two paths of the checkpoint are renamed to one.
    """
    sources: dict[str, str] = {}
    for source in saved:
        path = source
        for pattern, new in param_map.rename:
            path = re.sub(pattern, new, path)
        if path in sources:
            raise CheckpointError(
                f"rename: found that {sources[path]} and {source} both become {path}, expected "
                "another path for each. Make the patterns narrower."
            )
        sources[path] = source
    rows = []
    for path, leaf in model.items():
        row = _row(path, sources.get(path), saved, leaf, param_map)
        if any(matches(pattern, path) for pattern in param_map.freeze) and row.result in _FINE:
            result = row.result if path in frozen else "not frozen"
            row = replace(row, result=result, note=", ".join(filter(None, (row.note, "frozen"))))
        rows.append(row)
    for path, source in sources.items():
        if path not in model:
            wanted = any(matches(pattern, path) for pattern in param_map.ignore)
            result = "not wanted" if wanted else "unexpected"
            rows.append(PretrainedRow(path, source, _kind_of(saved[source]), "", result))
    return PretrainedReport(tuple(rows))


def _row(
    path: str, source: str | None, saved: Mapping[str, Any], leaf: Any, param_map: PretrainedMap
) -> PretrainedRow:
    def covered(patterns: list[str]) -> bool:
        return any(matches(pattern, path) for pattern in patterns)

    wanted = f"{leaf.dtype}{list(leaf.shape)}"
    if covered(param_map.skip):
        return PretrainedRow(path, "", "", wanted, "skipped")
    if source is None:
        return PretrainedRow(path, "", "", wanted, "missing")
    kind, notes = saved[source], []
    shape, dtype = tuple(kind["shape"]), kind["dtype"]
    result = "loaded"
    if shape != tuple(leaf.shape):
        same_size = np.prod(shape, dtype=int) == np.prod(leaf.shape, dtype=int)
        if covered(param_map.reshape) and same_size:
            notes.append("reshaped")
        else:
            result = "different shape"
    if dtype != str(leaf.dtype) and result == "loaded":
        if covered(param_map.cast):
            notes.append("cast")
        else:
            result = "different dtype"
    return PretrainedRow(path, source, _kind_of(kind), wanted, result, ", ".join(notes))


def _kind_of(kind: Mapping[str, Any]) -> str:
    return f"{kind['dtype']}{list(kind['shape'])}"


def load_mapped(
    trainer: TrainerView, step_folder: Path, param_map: PretrainedMap, dry_run: bool
) -> PretrainedReport:
    """Puts a checkpoint's parameters and collections in the place of a trainer's own.

    Returns what has become, or would become, of each array.

    Args:
        trainer: Of the model that takes them.
        step_folder: Of the checkpoint; it is only read.
        param_map: What may differ.
        dry_run: Only tell what would be loaded.

    Raises:
        CheckpointError: With the table, if something differs that the map does not cover.
    """
    state = trainer.state
    model = {name: getattr(state, name) for name in PARTS}
    leaves = read_meta(step_folder)["leaves"]
    saved = {path: kind for path, kind in leaves.items() if path.split("/", 1)[0] in PARTS}
    own = flatten_with_paths(model)
    mask = path_mask(frozen_patterns(trainer.optimizer_config), None)(state.params)
    frozen = {path for path, is_frozen in flatten_with_paths({"params": mask}).items() if is_frozen}
    report = compare(saved, own, param_map, frozen)
    if report.problems and not dry_run:
        raise CheckpointError(
            f"{step_folder}: found {len(report.problems)} arrays that do not fit the model, "
            "expected none. Change the model, or say in PretrainedMap what may differ; what is "
            "'not frozen' must be in OptimizerConfig.freeze as well:\n" + report.table()
        )
    _LOG.info("%s of %s:\n%s", "Would load" if dry_run else "Loaded", step_folder, report.table())
    if dry_run:
        return report
    taken = {row.path: row.source for row in report.rows if row.result == "loaded"}
    found = _read(step_folder, saved, own, taken)
    trainer.state = state.replace(
        opt_state=forget_average(state.opt_state, put_global),
        **map_with_paths(
            lambda path, leaf: _fit(found[taken[path]], leaf) if path in taken else leaf, model
        ),
    )
    return report


def _read(
    step_folder: Path, saved: Mapping[str, Any], own: Mapping[str, Any], taken: Mapping[str, str]
) -> dict[str, jax.Array]:
    """Returns the arrays that are taken by their path in the checkpoint, as they were saved."""
    template: dict[str, Any] = {}
    targets = {source: own[path] for path, source in taken.items()}
    everywhere = next(iter(own.values())).sharding
    for source, kind in saved.items():
        leaf, shape = targets.get(source), tuple(kind["shape"])
        same = leaf is not None and tuple(leaf.shape) == shape
        sharding = leaf.sharding if leaf is not None and same else _replicated(everywhere)
        *folders, name = source.split("/")
        place = template
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = jax.ShapeDtypeStruct(shape, kind["dtype"], sharding=sharding)
    parts = [part for part in PARTS if part in template]
    return flatten_with_paths(restore_partial(step_folder, parts, template))


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def _fit(value: jax.Array, leaf: jax.Array) -> jax.Array:
    if value.shape == leaf.shape and value.dtype == leaf.dtype:
        return value
    change = jax.jit(
        lambda x: x.reshape(leaf.shape).astype(leaf.dtype), out_shardings=leaf.sharding
    )
    return change(value)

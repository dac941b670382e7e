"""What Weights & Biases is told; the package is imported here and nowhere else."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from xtrainer.config.redact import redact
from xtrainer.errors import ConfigError, require
from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, saved_run_id
from xtrainer.loggers.media import Cell
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_MAX_BINS = 512
"""More are refused by W&B."""


@dataclass(frozen=True, kw_only=True)
class WandBLoggerConfig(LoggerToolConfig):
    """A run at Weights & Biases; sends what is logged and the config, no code and no console.

    The key is W&B's own affair: the variable WANDB_API_KEY, or what ``wandb login`` has kept.
    """

    project: str = "xtrainer"
    """The project that the run belongs to."""

    entity: str | None = None
    """The user or team; W&B's own default where None."""

    name: str | None = None
    """The run's name; that of the run folder where None."""

    mode: Literal["online", "offline", "disabled"] | None = None
    """Where to send; what the variable WANDB_MODE says where None, and online without it."""

    tags: list[str] = field(default_factory=list)
    """Words to find the run by."""

    def create(self, folder: Path | None) -> LoggerTool:
        """Returns the tool.

        Raises:
            ConfigError: If there is no run folder for W&B's own files.
            MissingDependencyError: If the package ``wandb`` is not installed.
        """
        if folder is None and self.mode != "disabled":
            raise ConfigError(
                "WandBLoggerConfig keeps its files in the run folder: found log_path=None, "
                "expected a folder. Set LoggerConfig.log_path, or mode='disabled'."
            )
        return WandBLogger(self, folder, require("wandb", "wandb"))


class WandBLogger(LoggerTool):
    """Sends rows with the step as a column of its own, so that none is dropped after a resume.

    A W&B run that is active already (a sweep's) is used and left open.

    Args:
        config: What to call the run and where to send it.
        folder: The run folder.
        wandb: The imported package.
    """

    is_remote = True

    def __init__(self, config: WandBLoggerConfig, folder: Path | None, wandb: ModuleType) -> None:
        self.config = config
        self.folder = folder
        self._wandb: Any = wandb
        self._run: Any = None
        self._run_id: str | None = None
        self._began_run = False
        self._began_at = 0

    def open(self) -> None:
        """Begins the run, or goes on with the one that this tool has closed."""
        self._open()

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Sends the config."""
        self._open().config.update(dict(config), allow_val_change=True)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Sends one row."""
        named = {f"{mode}/{key}": value for key, value in metrics.items()}
        # W&B drops rows whose own step goes back, so it counts rows and "step" is the x axis.
        self._open().log({**named, "step": step, "epoch": epoch})

    def log_text(self, key: str, text: str, step: int) -> None:
        """Sends a text."""
        self._open().log({f"text/{key}": text, "step": step})

    def log_model(self, table: str) -> None:
        """Sends the table of parameters as the text ``parameters``."""
        self.log_text("parameters", table, self._began_at)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Sends an image."""
        run = self._open()
        run.log({f"image/{key}": self._wandb.Image(_pixels(image)), "step": step})

    def log_histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Sends a histogram; of many bins several make one, as W&B takes 512 of them."""
        run, several = self._open(), -(-len(counts) // _MAX_BINS)
        if several > 1:
            begins = np.arange(0, len(counts), several)
            counts, edges = np.add.reduceat(counts, begins), np.append(edges[begins], edges[-1])
        bins = (counts.tolist(), edges.tolist())
        run.log({f"histogram/{key}": self._wandb.Histogram(np_histogram=bins), "step": step})

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Sends a table."""
        run, data = self._open(), [list(row) for row in rows]
        table = self._wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)
        run.log({f"table/{key}": table, "step": step})

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Sets the best values in the summary of the run, as ``best/METRIC``."""
        self._open().summary.update({f"best/{key}": value for key, value in metrics.items()})

    def state_dict(self) -> dict[str, JSON]:
        """Returns the id of the run, which a later process goes on with."""
        return {} if self._run_id is None else {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Goes on with the run of a checkpoint; rows of later steps are sent again, not removed."""
        self._run_id, self._began_at = saved_run_id(state) or self._run_id, step

    def finalize(self, status: str) -> None:
        """Closes the run; its exit code is 1 for ``"failed"``.

        Of a run that was kept here it says how to send it: all parts of a run that was resumed.
        """
        run, self._run = self._run, None
        if run is None or not self._began_run:
            return
        kept = run.settings.sync_dir if run.offline else None
        run.finish(exit_code=int(status == "failed"))
        if kept is not None:
            parts = f"{shlex.quote(str(Path(kept).parent))}/offline-run-*-{self._run_id}"
            _LOG.info("W&B has kept this run here. Send it with: wandb sync %s", parts)

    def _open(self) -> Any:
        if self._run is not None:
            return self._run
        self._began_run = self._wandb.run is None
        if self._began_run:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._run = self._wandb.init(
                project=self.config.project,
                entity=self.config.entity,
                name=redact(self.config.name) or (self.folder.name if self.folder else None),
                mode=self.config.mode,
                tags=self.config.tags or None,
                dir=None if self.folder is None else str(self.folder),
                id=self._run_id,
                resume=None if self._run_id is None else "allow",
                # Its metadata hold the command line, and who has started it.
                settings=self._wandb.Settings(
                    save_code=False, disable_git=True, console="off", x_disable_meta=True
                ),
            )
            self._run_id = self._run.id
        else:
            self._run = self._wandb.run
        self._run.define_metric("*", step_metric="step")
        return self._run


def _pixels(image: np.ndarray) -> np.ndarray:
    """Returns an image as W&B takes it: grey ones without an axis of channels."""
    return image[:, :, 0] if image.shape[2] == 1 else image

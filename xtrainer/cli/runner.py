"""How does a command run an experiment in processes that may be killed? One at a time, watched."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from xtrainer.cli.experiment import load_experiment
from xtrainer.cli.usage import UsageError
from xtrainer.testing import Fault, Journal, read_journal

_LAST_LINES = 30
NO_FAULT = Fault()


class RunFailed(Exception):
    """A run that has not ended as it should have."""


class Ended(NamedTuple):
    """A process that is gone.

    Attributes:
        journal: What it has noted.
        code: Its exit code, negative for a signal; None: it took too long and was killed.
        at: When it was gone, in seconds of ``time.time()``.
    """

    journal: Journal
    code: int | None
    at: float


class Runner:
    """Starts an experiment in processes.

    Args:
        experiment: The file.
        overrides: Of its config.
        folder: Of all runs and their journals.
        save_every: Steps between checkpoints; -1: as the experiment says.
        limit_s: Seconds that one process may take.
    """

    def __init__(
        self,
        experiment: str,
        overrides: Sequence[str],
        folder: Path,
        save_every: int = -1,
        limit_s: float = 3600.0,
    ) -> None:
        self.experiment, self.overrides = experiment, list(overrides)
        self.folder, self.save_every, self.limit_s = folder, save_every, limit_s
        self.count = 0

    def start(self, name: str, fault: Fault = NO_FAULT) -> Ended:
        """Runs one process to its end, whatever that is; the run is in the folder ``name``."""
        self.count += 1
        journal = self.folder / f"journal-{self.count}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.touch()
        command = [sys.executable, "-m", "xtrainer.cli.watched_run", self.experiment]
        command += [str(self.folder / name), str(journal), str(self.save_every)]
        command += [json.dumps(asdict(fault)), *self.overrides]
        with open(self._output(), "w", encoding="utf-8") as output:
            try:
                code: int | None = subprocess.run(
                    command, stdout=output, stderr=output, timeout=self.limit_s, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        at = time.time()
        return Ended(read_journal(journal), code, at)

    def complete(self, name: str) -> Ended:
        """Runs one process that is to end well.

        Raises:
            RunFailed: If it does not.
        """
        ended = self.start(name)
        if ended.code != 0:
            raise RunFailed(self.describe(ended))
        return ended

    def describe(self, ended: Ended) -> str:
        """Says how the newest process has ended, with the last lines of its output."""
        if ended.code is None:
            return f"a run took more than {self.limit_s} s."
        lines = self._output().read_text(encoding="utf-8", errors="replace")
        last = "\n".join(lines.splitlines()[-_LAST_LINES:])
        return f"a run ended with code {ended.code}:\n{last}"

    def _output(self) -> Path:
        return self.folder / f"output-{self.count}.txt"


@contextlib.contextmanager
def runner_of(
    command: str, experiment: str, overrides: Sequence[str], keep: Path | None,
    save_every: int, limit_s: float,
) -> Iterator[Runner]:  # fmt: skip
    """Gives what starts an experiment, in a folder that is removed where it is not to be kept.

    Raises:
        UsageError: If there is no experiment with a function ``run``, or the folder is not empty.
    """
    found = load_experiment(experiment)
    if found.run is None:
        raise UsageError(f"{found.path}: found no function run(config). Add one that trains.")
    folder = keep or Path(tempfile.mkdtemp(prefix=f"xtrainer-{command}-"))
    folder = folder.expanduser().resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--keep: {str(folder)!r} is not empty, expected a new folder.")
    try:
        yield Runner(str(found.path), overrides, folder, save_every, limit_s)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)

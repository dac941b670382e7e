"""Where does a report go? Into one file, by default into the run folder."""

from collections.abc import Sequence
from pathlib import Path

from xtrainer.report.compare import MOST_RUNS, comparison_page
from xtrainer.report.page import run_page, write_page
from xtrainer.report.run import ReportError, RunRecord, read_run

REPORT_FILE = "report.html"


def write_report(runs: Sequence[str | Path | RunRecord], output: str | Path | None = None) -> Path:
    """Writes the report of a run, or a comparison of several, and returns the path of the file.

    Args:
        runs: Run folders, or what :func:`read_run` has read of them.
        output: The file; None: ``report.html`` in the folder of the first run.

    Raises:
        ReportError: If a folder holds no run, there are none or too many, or the file cannot be
            written.
        MissingDependencyError: If plotly is not installed.

    Example:
        >>> write_report([])
        Traceback (most recent call last):
        xtrainer.report.run.ReportError: found 0 runs, expected between 1 and 8 folders.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise ReportError(f"found {len(runs)} runs, expected between 1 and {MOST_RUNS} folders.")
    read = [run if isinstance(run, RunRecord) else read_run(run) for run in runs]
    page = run_page(read[0]) if len(read) == 1 else comparison_page(read)
    path = read[0].folder / REPORT_FILE if output is None else Path(output).expanduser()
    try:
        write_page(page, path)
    except OSError as error:
        raise ReportError(
            f"{path}: the report cannot be written ({error.strerror or error}). Choose another "
            "file by --output."
        ) from error
    return path

"""What has a run logged before this process? The rows in the files of its folder."""

from xtrainer.loggers import FileLoggerConfig, LoggerConfig, read_metrics, run_folder
from xtrainer.metrics import Row


def logged_rows(config: LoggerConfig | None, mode: str) -> list[Row]:
    """Returns the rows of a set in the files of a run, oldest first; none where it has no files.

    Args:
        config: Of the run's logger.
        mode: The set.

    Raises:
        MetricError: If the file of rows is damaged.
    """
    folder = run_folder(config)
    if config is None or folder is None:
        return []
    if not any(isinstance(tool, FileLoggerConfig) for tool in config.log_tools):
        return []
    try:
        rows = read_metrics(folder)
    except FileNotFoundError:
        return []
    return [Row(r["step"], r["epoch"], r["metrics"]) for r in rows if r["set"] == mode]

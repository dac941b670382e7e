"""A table of all kills is shown at the end."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Shows what tests have recorded as ``table``."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "table" and getattr(report, "when", "") == "call":
                    terminalreporter.write_line(f"\n{value}")

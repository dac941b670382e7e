"""Who ends the processes of a local run when their launcher is killed? This small program.

``local.py`` starts it as a file of its own, outside the package, so that it costs next to nothing,
and writes the number of each process to its input. Where that ends without the word ``done``, the
launcher is gone.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

_POLL_S = 0.05


def guard(lines: Iterable[str], grace_s: float) -> None:
    """Waits for the end of ``lines``; ends the process groups they name unless they say ``done``.

    Args:
        lines: One leader of a process group each.
        grace_s: Seconds between asking the leaders (SIGTERM) and ending the groups (SIGKILL).
    """
    leaders = []
    for line in lines:
        if line.strip() == "done":
            return
        leaders.append(int(line))
    for leader in leaders:
        _reached(leader, signal.SIGTERM)
    end = time.monotonic() + grace_s
    while leaders and time.monotonic() < end:
        # A group that is gone is dropped at once: its number may come to belong to others.
        leaders = [leader for leader in leaders if _group_reached(leader, 0)]
        time.sleep(_POLL_S)
    for leader in leaders:
        _group_reached(leader, signal.SIGKILL)


def _reached(process: int, number: int) -> bool:
    try:
        os.kill(process, number)
    except OSError:
        return False
    return True


def _group_reached(leader: int, number: int) -> bool:
    try:
        os.killpg(leader, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    guard(sys.stdin, float(sys.argv[1]))

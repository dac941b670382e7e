"""Where is every thread of this process now? Their stacks as text, without any of their values."""

import sys
import threading
import traceback
from types import FrameType


def stacks(first: int | None = None) -> dict[str, list[str]]:
    """Returns the stack of each thread by its name, outermost call first.

    Args:
        first: Number of the thread (``threading.get_ident()``) that comes first; the thread that
            asks comes last.

    Example:
        >>> found = stacks()
        >>> "MainThread" in list(found)[-1], found[list(found)[-1]][-1].split(", in ")[1][:6]
        (True, 'stacks')
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    frames = sorted(
        sys._current_frames().items(), key=lambda item: (item[0] == own, item[0] != first)
    )
    found = {}
    for number, frame in frames:
        name = names.get(number, "not a thread of Python's")
        found[f"{name} ({number})"] = _lines(frame)
    return found


def stack_modules(thread: int) -> list[str]:
    """Returns the modules that the calls of a thread are in, innermost first; [] if it is gone.

    Example:
        >>> stack_modules(threading.get_ident())[0]
        'xtrainer.launch.stacks'
    """
    frame = sys._current_frames().get(thread)
    found = []
    while frame is not None:
        found.append(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return found


def stacks_text(found: dict[str, list[str]]) -> str:
    """Returns stacks for a log.

    Example:
        >>> print(stacks_text({"MainThread (1)": ["a.py:3, in wait: event.wait()"]}))
        Thread MainThread (1):
          a.py:3, in wait: event.wait()
    """
    return "\n".join(
        f"Thread {name}:\n" + "\n".join(f"  {line}" for line in lines)
        for name, lines in found.items()
    )


def _lines(frame: FrameType) -> list[str]:
    return [
        f"{part.filename}:{part.lineno}, in {part.name}: {part.line or ''}".rstrip(": ")
        for part in traceback.extract_stack(frame)
    ]

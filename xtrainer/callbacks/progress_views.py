"""How is the progress of a run shown? On a terminal, in a notebook, or in a plain line."""

import html
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from xtrainer.callbacks.progress_facts import Facts, duration
from xtrainer.callbacks.progress_screen import Screen
from xtrainer.errors import require

_LOG = logging.getLogger(__name__)
_FIRST_LINE_S = 10.0
_WIDE = 60


class ProgressView(Protocol):
    """A place where progress is shown."""

    in_thread: bool
    """Whether a thread draws, every so often; else the run says when there is news."""

    def open(self) -> None:
        """Begins."""
        ...

    def draw(self, facts: Facts) -> None:
        """Shows what is known."""
        ...

    def close(self, facts: Facts, status: str) -> None:
        """Shows what is left to say at the end; ``status`` as for ``Hooks.finalize``."""
        ...

    def release(self) -> None:
        """Gives back what was taken, also where drawing has got stuck."""
        ...


def counts(facts: Facts) -> str:
    """Returns how many steps are done, or batches of an evaluation.

    Example:
        >>> counts(Facts(step=1200, total=3000)), counts(Facts(title="val", batches=(3, None)))
        ('1,200/3,000', '3')
    """
    done, total = facts.batches or (facts.step, facts.total)
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"


def closing_line(facts: Facts, status: str) -> str:
    """Returns what stays where progress was shown.

    Example:
        >>> closing_line(Facts(step=6, total=6, spent_s=3.0, loss=0.25), "completed")
        'train: 100% 6/6 steps in 3 s, loss 0.25'
    """
    facts.batches = None
    share = "" if facts.share is None else f"{int(100 * facts.share)}% "
    rates = [part for part in facts.newest() if not part.startswith(("epoch", "lr"))]
    head = f"train: {share}{counts(facts)} steps in {duration(facts.spent_s)}"
    end = [status] if status in ("stopped", "failed") else []
    return ", ".join([head, *rates, *end])


class TerminalView:
    """Some lines at the foot of a terminal, drawn by Rich.

    Args:
        screen: The terminal.
    """

    in_thread = True

    def __init__(self, screen: Screen) -> None:
        from rich.console import Console  # not with the package: it imports much

        self.screen = screen
        self._console = Console(file=screen.stream, highlight=False, force_jupyter=False)

    def open(self) -> None:
        """See the protocol."""
        self.screen.open()

    def draw(self, facts: Facts) -> None:
        """See the protocol."""
        columns, rows = self.screen.size
        self.screen.draw(self.lines(facts, columns - 1)[: max(rows - 2, 1)])

    def close(self, facts: Facts, status: str) -> None:
        """See the protocol."""
        self.screen.draw(())
        self.screen.print(self.screen.stream, closing_line(facts, status) + "\n")

    def release(self) -> None:
        """See the protocol."""
        self.screen.close()

    def lines(self, facts: Facts, width: int) -> list[str]:
        """Returns the lines of a width, with their colours."""
        groups = [facts.newest(), facts.validated(), facts.saved()]
        head = self._bar(facts, width)
        if width < _WIDE:  # what has no room beside the bar
            groups[0] = [counts(facts), *_left(facts), *groups[0]]
        packed = [line for group in groups for line in pack(group, width)]
        with self._console.capture() as captured:
            self._console.print(head, width=width)
            for line in packed:
                self._console.print(_styled(line), width=width, no_wrap=True, overflow="ellipsis")
        return captured.get().rstrip("\n").split("\n")

    def _bar(self, facts: Facts, width: int) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done, total = facts.batches or (facts.step, facts.total)
        bar = ProgressBar(total=total, completed=done, pulse=total is None)
        share = "" if not total else f"{100 * min(done / total, 1):.0f}%"
        words = [share] if width < _WIDE else [counts(facts), share, *_left(facts)]
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, min_width=4)
        grid.add_column(no_wrap=True)
        title = Text(f"{facts.title}:", style="bold")
        title.truncate(max(width // 3, 6), overflow="ellipsis")
        grid.add_row(title, bar, Text(" ".join(word for word in words if word)))
        return grid


class PlainView:
    """Lines that say how far it is: after ten seconds, then ever more seldom.

    Each comes when half as much time again has passed, or ``most_s``.

    Args:
        most_s: Seconds between two lines at the most.
        says_rows: Whether something else says the rows of metrics; then the lines go without
            them, and through Python's logging, as those do. Otherwise they go to stderr.
        clock: Seconds of any origin.
    """

    in_thread = False

    def __init__(
        self, most_s: float, says_rows: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_s, self._says_rows, self._clock = most_s, says_rows, clock
        self._begun = self._clock()
        self._due = self._begun + min(_FIRST_LINE_S, most_s)

    def open(self) -> None:
        """See the protocol."""

    def draw(self, facts: Facts) -> None:
        """See the protocol."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + min((now - self._begun) / 2, self._most_s)
        head = f"{facts.title}: {counts(facts)}"
        if facts.batches is None and facts.share is not None:
            head += f" ({int(100 * facts.share)}%)"
        news = facts.newest()
        if self._says_rows:
            news = [part for part in news if not part.startswith(("loss", "lr"))]
        self._say(", ".join([head, *_left(facts), *news, *facts.saved()]))

    def close(self, facts: Facts, status: str) -> None:
        """See the protocol."""
        if not self._says_rows:  # else the summary says it
            self._say(closing_line(facts, status))

    def release(self) -> None:
        """See the protocol."""

    def _say(self, line: str) -> None:
        if self._says_rows:
            _LOG.info("%s", line)
        elif sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


class NotebookView:
    """One output of a cell that is replaced, so that a saved notebook holds the last state alone.

    It needs no extension of the notebook.
    """

    in_thread = True

    def __init__(self) -> None:
        self._handle: Any = None

    def open(self) -> None:
        """See the protocol."""

    def draw(self, facts: Facts) -> None:
        """See the protocol."""
        groups = [[counts(facts), *_left(facts), *facts.newest()], facts.validated(), facts.saved()]
        lines = [", ".join(group) for group in groups if group]
        done, total = facts.batches or (facts.step, facts.total)
        ends = f' value="{done}" max="{total}"' if total else ""
        bar = f'<progress{ends} style="width:60%"></progress>'
        title = html.escape(facts.title)
        body = "<br>".join(html.escape(line) for line in lines)
        self._show("\n".join([f"{facts.title}:", *lines]), f"{title}: {bar}<br>{body}")

    def close(self, facts: Facts, status: str) -> None:
        """See the protocol."""
        line = closing_line(facts, status)
        self._show(line, html.escape(line))

    def clear(self) -> None:
        """Leaves an empty output, where there is one."""
        if self._handle is not None:
            self._show("", "")

    def release(self) -> None:
        """See the protocol."""

    def _show(self, plain: str, page: str) -> None:
        bundle = {"text/plain": plain, "text/html": page}
        if self._handle is None:
            display = require("IPython.display", "notebooks").display
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def in_notebook() -> bool:
    """Says whether this is the kernel of a notebook."""
    shell = sys.modules.get("IPython")  # which a kernel has imported
    found = None if shell is None else getattr(shell, "get_ipython", lambda: None)()
    return found is not None and getattr(found, "kernel", None) is not None


def pack(parts: Sequence[str], width: int) -> list[str]:
    """Returns parts side by side, in as many lines as they need.

    Example:
        >>> pack(["loss 1.25", "lr 0.001", "epoch 3"], width=24)
        ['loss 1.25 · lr 0.001', 'epoch 3']
    """
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _left(facts: Facts) -> list[str]:
    return [] if facts.left_s is None else [f"{duration(facts.left_s)} left"]


def _styled(line: str) -> Any:
    from rich.text import Text

    text = Text(line)
    text.highlight_regex(r"\b\d+([.,:]\d+)*(e[-+]?\d+)?[kMG]?\b%?", "cyan")
    text.highlight_regex(r"refused steps?|waiting for.*", "yellow")
    return text

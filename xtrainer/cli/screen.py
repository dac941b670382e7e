"""How do the commands print? Text and tables that fit a terminal, and JSON that a program reads."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 100
_WIDE = 1000
"""Where there is no terminal a row is one line, however long, for ``grep`` and the like."""


def make_console(limit: int = WIDTH, rows_in_one_line: bool = False) -> Console:
    """Returns what prints to stdout; in colours on a terminal only, and not under ``NO_COLOR``.

    Args:
        limit: The most columns on a terminal, and what there are elsewhere.
        rows_in_one_line: Whether no row of a table may be broken where there is no terminal.
    """
    console = Console(highlight=False, emoji=False)
    elsewhere = _WIDE if rows_in_one_line else limit
    console.width = min(console.width, limit) if console.is_terminal else elsewhere
    return console


def print_json(data: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(data, indent=2, allow_nan=False))


@contextlib.contextmanager
def nothing_printed(wanted: bool = True) -> Iterator[None]:
    """Sends what is printed inside, as by an experiment, to stderr: a document is to follow.

    Args:
        wanted: Whether to do so at all.
    """
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_title(console: Console, title: str) -> None:
    """Prints the title of a part, under an empty line."""
    console.print(Text(f"\n{title}", style="bold"))


def print_list(console: Console, lines: Iterable[str]) -> None:
    """Prints lines behind dashes."""
    table = make_grid()
    for line in lines:
        table.add_row("-", Text(line))
    print_indented(console, table)


def print_indented(console: Console, table: Table) -> None:
    """Prints a table one column to the right."""
    console.print(Padding(table, (0, 0, 0, 1), expand=False))


def make_grid() -> Table:
    """Returns a table without a head, for names and what they mean."""
    return Table.grid(padding=(0, 2, 0, 0))


def make_table(*columns: str, numbers: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """Returns a table with a head and no other lines.

    Args:
        columns: Their names.
        numbers: Columns that are set to the right, and never broken.
        whole: Further columns that are never broken.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            no_wrap=name in {*numbers, *whole},
            overflow="fold",
        )
    return table


def tell(line: str) -> None:
    """Prints a line for people, which is no part of what a program reads."""
    print(line, file=sys.stderr)


def show_bytes(count: int) -> str:
    """Returns a number of bytes in the largest unit that leaves a number of at least 1.

    Example:
        >>> show_bytes(512), show_bytes(3_598_888), show_bytes(17 * 2**30)
        ('512 B', '3.43 MiB', '17.0 GiB')
    """
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{show_digits(number) if units[0] != 'B' else count} {units[0]}"


def show_digits(number: float) -> str:
    """Returns a number >= 1 with three digits.

    Example:
        >>> show_digits(3.4321), show_digits(34.321), show_digits(343.21)
        ('3.43', '34.3', '343')
    """
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"

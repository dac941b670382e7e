"""A line is there whole or not at all, and nothing of a failed one comes later."""

import csv
from pathlib import Path

import pytest
import zoo

from xtrainer.loggers.lines import LineFile


def test_lines_are_there_at_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("before\n")
    file = LineFile(path)
    assert file.write("größe\n") == 6
    assert path.read_text(encoding="utf-8") == "before\ngröße\n"
    assert file.size == path.stat().st_size == 7 + 8
    file.close()


@pytest.mark.parametrize("room", range(0, 11, 2))
def test_a_line_that_does_not_fit_leaves_nothing(tmp_path: Path, room: int) -> None:
    path = tmp_path / "lines"
    file = LineFile(path)
    file.write("first\n")
    with zoo.full_disk(6 + room), pytest.raises(OSError):
        file.write("0123456789\n")
    assert path.read_bytes() == b"first\n" and file.size == 6
    file.write("second\n")
    assert path.read_bytes() == b"first\nsecond\n"
    file.shorten(6)
    file.write("third\n")
    file.close()
    assert path.read_bytes() == b"first\nthird\n"


def test_a_row_of_a_table_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LineFile(tmp_path / "table.csv")
    texts: list[str] = []
    monkeypatch.setattr(file, "write", lambda text: texts.append(text))
    csv.writer(file, lineterminator="\n").writerow([1, "a,b", 2.5])
    assert texts == ['1,"a,b",2.5\n']
    file.close()

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import chosen, main, parse
from benchmarks.catalog import PEERS, WORKLOADS
from benchmarks.conduct import environment_of, measure_all, repeats_of
from benchmarks.measure import Pairs, Row

MEASURED = Pairs([1e-6, 2e-6, 3e-6], [2e-6, 3e-6, 4e-6]).row("mlp", "plain")
MISSING = Row("mlp", "plain", who="keras", note="not installed: pip install keras")
MACHINE = {
    "python": "3.11",
    "processors": 2,
    "devices": ["cpu cpu"],
    "versions": {"jax": "0.10", "torch": None},
}


def test_the_table_has_a_line_for_each_row_and_a_cell_for_each_column() -> None:
    lines = report.table([MEASURED, MISSING]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(report.HEADER) + 1}
    assert "| mlp | plain | xtrainer | us/step | 2 | 3 | 1 | 1.5 (1.42 to 1.75) |" in lines[2]
    assert lines[3].endswith("not installed: pip install keras |")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (29.54, "29.5"), (123456.7, "123457"), (1.004, "1"), (0.0333, "0.0333")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text
    assert report.number(-value) == ("-" + text if value else text)


def test_machines_of_one_kind_share_a_line() -> None:
    text = report.facts({"mlp": MACHINE, "gpt": MACHINE, "failed": {}})
    assert text == "- mlp, gpt: 1 x cpu cpu; 2 processors; Python 3.11; jax 0.10."


def test_the_json_gives_the_rows_back() -> None:
    text = report.to_json({"rows": [MEASURED, MISSING], "machines": {"mlp": MACHINE}})
    found = json.loads(text)
    assert [Row.from_dict(row) for row in found["rows"]] == [MEASURED, MISSING]
    assert found["machines"]["mlp"]["devices"] == ["cpu cpu"]


def test_without_matplotlib_the_table_is_written_and_the_plot_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    said = report.write({"rows": [MEASURED], "machines": {}}, tmp_path / "new")
    assert "pip install 'xtrainer[benchmarks]'" in said
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.md"]


def test_the_plot_is_drawn_where_matplotlib_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert report.draw([MEASURED, MISSING], tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    assert not report.draw([MISSING], tmp_path / "none.png")


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*WORKLOADS, *PEERS]


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "workloads", "peers", "ours"),
    [
        ([], list(WORKLOADS), [], True),
        (["--only", "gpt"], ["gpt"], [], True),
        (["--only", "keras"], list(WORKLOADS), ["keras"], False),
        (["--only", "keras", "gpt", "leaves"], ["gpt", "leaves"], ["keras"], False),
        (["--peers", "--only", "gpt"], ["gpt"], list(PEERS), True),
    ],
)
def test_peers_that_are_named_are_measured_alone(
    arguments: list[str], workloads: list[str], peers: list[str], ours: bool
) -> None:
    assert chosen(parse(arguments)) == (workloads, peers, ours)


def test_a_peer_that_is_missing_gives_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "keras", ("a_package_that_nobody_made", "jax"))
    found = measure_all(["mlp", "gpt"], ["keras"], 1, say=lambda text: None, ours=False)
    assert found["machines"] == {}
    (row,) = found["rows"]
    assert row.who == "keras" and "pip install a_package_that_nobody_made" in row.note


def test_only_the_workload_of_virtual_devices_asks_for_a_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for peer in (None, *PEERS):
        asked = {name for name in WORKLOADS if "JAX_PLATFORMS" in environment_of(name, peer)}
        assert asked == {"devices"}
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    assert environment_of("devices")["XLA_FLAGS"] == "--mine"
    assert "JAX_PLATFORMS" not in environment_of("devices")


def test_fast_workloads_are_repeated_more_often() -> None:
    assert repeats_of("mlp", None) > repeats_of("gpt", None) >= 7
    assert repeats_of("mlp", 3) == 3

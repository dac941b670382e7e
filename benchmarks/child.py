"""One workload in a process of its own: devices, memory and settings are not shared.

Synopsis:
    python -m benchmarks.child mlp rows.json --repeats 7
    python -m benchmarks.child mlp rows.json --repeats 7 --peer keras
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks.catalog import PEERS, WORKLOADS
from benchmarks.machine import describe_machine
from benchmarks.measure import Row


def rows_of(workload: str, peer: str | None, repeats: int, options: dict[str, Any]) -> list[Row]:
    """Returns what is measured of xtrainer, or of a peer."""
    if peer is None:
        module = importlib.import_module(f"benchmarks.workloads.{workload}")
        return module.measure(repeats, **options)
    from benchmarks.peers.measured import measure

    adapter = importlib.import_module(f"benchmarks.peers.{peer}")
    return measure(adapter.PEER, workload, repeats, **options)


def main() -> None:
    """Measures, and writes the rows and the machine to a file."""
    parser = argparse.ArgumentParser(description="Measures one workload in this process.")
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("file", type=Path, help="where the rows go")
    parser.add_argument("--peer", choices=list(PEERS), help="instead of xtrainer")
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="more arguments, as JSON")
    given = parser.parse_args()
    rows = rows_of(given.workload, given.peer, given.repeats, given.options)
    backend = "jax" if given.peer is None else PEERS[given.peer][1]
    found = {"rows": [row.to_dict() for row in rows], "machine": describe_machine(backend)}
    given.file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

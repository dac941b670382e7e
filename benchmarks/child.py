"""One workload or one peer, in a process of its own: devices, memory and settings are not shared.

Synopsis:
    python -m benchmarks.child mlp rows.json --repeats 7
    python -m benchmarks.child keras rows.json --repeats 7
"""

import argparse
import importlib
import json
from pathlib import Path

from benchmarks.catalog import PEERS, WORKLOADS
from benchmarks.machine import describe_machine


def main() -> None:
    """Measures, and writes the rows and the machine to a file."""
    parser = argparse.ArgumentParser(description="Measures one workload in this process.")
    parser.add_argument("name", choices=[*WORKLOADS, *PEERS])
    parser.add_argument("file", type=Path, help="where the rows go")
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="more arguments, as JSON")
    arguments = parser.parse_args()
    room = "peers" if arguments.name in PEERS else "workloads"
    module = importlib.import_module(f"benchmarks.{room}.{arguments.name}")
    rows = module.measure(arguments.repeats, **arguments.options)
    backend = PEERS[arguments.name][1] if arguments.name in PEERS else "jax"
    found = {"rows": [row.to_dict() for row in rows], "machine": describe_machine(backend)}
    arguments.file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What could somebody have put into a run folder that is opened here? One change per variant.

Where a change lies below checksums these are made right again, as its author would have done.
"""

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xtrainer.checkpoint import commit

Change = Callable[[Path], None]
STEP = "4"
CANARY = "canary_of_the_corpus"
"""A module beside the run folder, on the path of Python, that leaves a file when imported."""


class Payload:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch unpickled",)


PICKLE = pickle.dumps(Payload())
TARGETS = {
    "os_system": "os.system",
    "popen": "subprocess.Popen",
    "eval": "builtins.eval",
    "beside": f"{CANARY}.Thing",
    "relative": f"..{CANARY}",
    "path": f"../{CANARY}.py",
    "main": "__main__.Payload",
}


def step_of(run: Path) -> Path:
    """Returns the folder of the run's step."""
    return run / "checkpoints" / STEP


def reseal(run: Path, **record: Any) -> None:
    """Writes the record of what now lies in the step, with other entries where they are given."""
    folder = step_of(run)
    old = json.loads((folder / "COMMIT.json").read_bytes())
    old.pop("crc32c")
    names = [name for name in old["files"] if commit._size(folder / name) is not None]
    sums = {name: list(found) for name, found in commit._checksums(folder, names).items()}
    write_record(run, {**old, "files": sums, **record})


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Writes a record with a checksum that matches."""
    text = json.dumps({**record, "crc32c": commit._own_checksum(record)})
    (step_of(run) / "COMMIT.json").write_text(text)


def record(**changes: Any) -> Change:
    """Returns what changes entries of the record."""
    return lambda run: reseal(run, **changes)


def recorded_files(**files: Any) -> Change:
    """Returns what adds files to the record."""

    def change(run: Path) -> None:
        old = json.loads((step_of(run) / "COMMIT.json").read_bytes())["files"]
        reseal(run, files={**old, **files})

    return change


def meta(*keys: str, to: Any) -> Change:
    """Returns what changes one value of the metadata."""

    def change(run: Path) -> None:
        path = step_of(run) / "meta.json"
        whole = place = json.loads(path.read_bytes())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        path.write_text(json.dumps(whole))
        reseal(run)

    return change


def content(name: str, data: bytes) -> Change:
    """Returns what replaces a file of the step."""

    def change(run: Path) -> None:
        (step_of(run) / name).write_bytes(data)
        if name != "COMMIT.json":
            reseal(run)

    return change


def raw_meta(key: str, text: bytes) -> Change:
    """Returns what puts a text, which need not be JSON, in the place of a value."""

    def change(run: Path) -> None:
        path = step_of(run) / "meta.json"
        whole = json.loads(path.read_bytes()) | {key: "@@"}
        path.write_bytes(json.dumps(whole).encode().replace(b'"@@"', text))
        reseal(run)

    return change


def beside(*names: str, data: bytes = PICKLE) -> Change:
    """Returns what puts files into the run folder."""

    def change(run: Path) -> None:
        for name in names:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(data)

    return change


def instead(name: str, make: Callable[[Path, Path], None], again: bool = False) -> Change:
    """Returns what puts something else in the place of a file or folder of the run."""

    def change(run: Path) -> None:
        path = run / name
        if os.path.lexists(path):
            path.rename(outside(run) / "moved")
        path.parent.mkdir(parents=True, exist_ok=True)
        make(run, path)
        if again:
            reseal(run)

    return change


def outside(run: Path) -> Path:
    """Returns a folder beside the run that nothing may change."""
    return run.parent / "outside"


def fifo(run: Path, path: Path) -> None:
    os.mkfifo(path)


def folder(run: Path, path: Path) -> None:
    path.mkdir()


def zeros(run: Path, path: Path) -> None:
    path.symlink_to("/dev/zero")


def moved(run: Path, path: Path) -> None:
    path.symlink_to(outside(run) / "moved")


def victim(run: Path, path: Path) -> None:
    path.symlink_to(outside(run) / "victim")


def array_file(run: Path) -> None:
    files = sorted(path for path in (step_of(run) / "state").rglob("*") if path.is_file())
    for path in files:
        path.write_bytes(PICKLE)
    reseal(run)


def array_file_swapped(run: Path) -> None:
    files = [path for path in (step_of(run) / "state").rglob("d/*") if path.is_file()]
    files[0].write_bytes(os.urandom(files[0].stat().st_size))
    reseal(run)


def objects(run: Path) -> None:
    np.savez(step_of(run) / "state" / "params.npz", np.array([Payload()], object))
    reseal(run)
    sums = commit._checksums(step_of(run), ["state/params.npz"])
    recorded_files(**{name: list(found) for name, found in sums.items()})(run)


def state_metadata(run: Path) -> None:
    path = step_of(run) / "state" / "_METADATA"
    whole = json.loads(path.read_bytes())
    for entry in whole["tree_metadata"].values():
        entry["value_metadata"] = {"value_type": "os.system", "_target_": "os.system"}
    path.write_text(json.dumps(whole))
    reseal(run)


def one_row(**changes: Any) -> Change:
    """Returns what puts a row before the metrics, and a folder that a name may lead through."""

    def change(run: Path) -> None:
        row = {"set": "train", "step": 1, "epoch": 1, "metrics": {"loss": 1.0}, **changes}
        path = run / "metrics.jsonl"
        path.write_text(json.dumps(row) + "\n" + path.read_text())
        (run / "metrics_x").mkdir()

    return change


def _configs() -> dict[str, Change]:
    """Returns names of code in every place of the configs."""
    found: dict[str, Change] = {}
    for name, target in TARGETS.items():
        call = {"_target_": target, "class_path": target, "_instantiator": target}
        named = {"class_name": target, "args": ["touch called"]}
        found |= {
            f"trainer_{name}": meta("config", "trainer", to={"class_name": target, **call}),
            f"precision_{name}": meta("config", "trainer", "precision", to=named),
            f"model_class_{name}": meta("config", "model", "model_class", to=target),
            f"model_config_{name}": meta("config", "model", "model_config", to={**named, **call}),
            f"optimizer_{name}": meta("config", "optimizer", "name", to=target),
            f"scheduler_{name}": meta("config", "optimizer", "scheduler", to={**named, **call}),
            f"callbacks_{name}": meta("config", "trainer", "callbacks", to=[named]),
            f"tools_{name}": meta("config", "trainer", "logger", to={"log_tools": [named]}),
        }
    return found


def _json() -> dict[str, Change]:
    """Returns texts that are no JSON, or more of it than there should be."""
    texts = {
        "deep_list": b"[" * 10**5 + b"]" * 10**5,
        "deep_object": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
        "levels": b"[" * 101 + b"]" * 101,
        "objects": b'{"a":' * 95 + b"1" + b"}" * 95,
        "long_text": b'"' + b"a" * 5 * 10**7 + b'"',
        "many_lists": b"[" + b"[]," * 10**7 + b"[]]",
        "too_long": b'"' + b"a" * (2**26 + 1) + b'"',
        "long_number": b"9" * 10**5,
        "nan": b"NaN",
        "infinity": b"-Infinity",
        "overflow": b"1e999",
        "no_utf8": b'"\xff\xfe"',
        "surrogate": b'"\\ud800"',
        "null_byte": b'"\\u0000"',
        "key_twice": b'{"trainer": {"seed": 1, "seed": 2}}',
        "twice": b'{}, "leaves": {}, "leaves": {"a": 1}',
        "list": b"[]",
        "text": b'"text"',
        "number": b"3",
        "true": b"true",
        "null": b"null",
    }
    keys = (
        "progress",
        "loaders",
        "callbacks",
        "config",
        "leaves",
        "loggers",
        "rows",
        "ledger",
        "data",
    )
    some = ("list", "text", "number", "true", "null", "overflow", "surrogate", "long_number")
    found = {f"config_{name}": raw_meta("config", text) for name, text in texts.items()}
    found |= {f"{key}_{name}": raw_meta(key, texts[name]) for key in keys for name in some}
    found |= {f"record_{name}": content("COMMIT.json", texts[name]) for name in texts}
    found |= {f"run_{name}": beside("checkpoints/RUN.json", data=texts[name]) for name in texts}
    return found | {"rank_yaml": content("rank.json", b"!!python/object/apply:os.system [id]")}


def _shapes() -> dict[str, Change]:
    """Returns arrays that cannot be."""
    leaf, path = ("leaves", "params/Dense_0/kernel"), ("batch_spec",)
    shapes = {
        "huge": [10**30], "large": [2**20, 2**20], "negative": [-1, 8], "bool": [True, 8],
        "float": [4.5, 8], "text": ["4", 8], "object": {"a": 1}, "long": [1] * 1000,
    }  # fmt: skip
    found: dict[str, Change] = {}
    for name, shape in shapes.items():
        found[f"leaf_{name}"] = meta(*leaf, to={"shape": shape, "dtype": "float32"})
        array = {"kind": "array", "shape": shape, "dtype": "float32"}
        found[f"batch_{name}"] = meta(*path, to={"kind": "Batch", "items": [array, array, None]})
        rows = {"dtype": "float32", "shape": shape, "data": "AAAA"}
        found[f"window_{name}"] = meta("rows", "windows", "current", to=rows)
    for name in ("O", "object", "U10", "float33", "V8", "datetime64", "", "os.system", "f4,f4"):
        found[f"leaf_dtype_{name}"] = meta(*leaf, to={"shape": [4, 8], "dtype": name})
        array = {"kind": "array", "shape": [4, 8], "dtype": name}
        found[f"batch_dtype_{name}"] = meta(*path, to=array)
        rows = {"dtype": name, "shape": [1], "data": "AAAAAAAAAAA="}
        found[f"window_dtype_{name}"] = meta("rows", "windows", "current", to=rows)
    return found


def _places() -> dict[str, Change]:
    """Returns links and devices in the place of files, and names that lead elsewhere."""
    inside = f"checkpoints/{STEP}"
    files = [
        f"{inside}/COMMIT.json", f"{inside}/meta.json", f"{inside}/rank.json",
        "checkpoints/RUN.json", "checkpoints/FAILED.json", "checkpoints/RUN.json.tmp",
        "metrics.jsonl", "metrics_train.csv", "metrics.superseded.jsonl", "config.json",
        "config.json.tmp", "output.log",
    ]  # fmt: skip
    found: dict[str, Change] = {}
    for name in files:
        short = name.replace(f"{inside}/", "").replace("/", "_")
        for kind in (fifo, folder, zeros, victim):
            found[f"{kind.__name__}_{short}"] = instead(name, kind)
    for name in (inside, "checkpoints", f"{inside}/state", f"{inside}/meta.json", "metrics.jsonl"):
        found[f"linked_{name.replace('/', '_')}"] = instead(name, moved)
    found["linked_meta_unrecorded"] = instead(f"{inside}/meta.json", moved, again=True)
    found["fifo_meta_unrecorded"] = instead(f"{inside}/meta.json", fifo, again=True)
    found["zeros_meta_unrecorded"] = instead(f"{inside}/meta.json", zeros, again=True)
    names = {
        "absolute": "/etc/passwd", "parent": "../../../outside/victim", "null": "state/a\0b",
        "backslash": "..\\..\\outside\\victim", "device": "state/NUL.txt", "drive": "C:/a",
        "surrogate": "state/\ud800", "empty": "", "dot": ".", "long": "a" * 10**5,
    }  # fmt: skip
    for name, path in names.items():
        found[f"recorded_{name}"] = recorded_files(**{path: [0, 0]})
        found[f"loader_{name}"] = meta("loaders", to={path: {"pass_index": 0}})
        found[f"callback_{name}"] = meta("callbacks", to={path: {"path": path}})
        found[f"logger_{name}"] = meta("loggers", to={path: {"run_id": path}})
        found[f"metric_{name}"] = meta("metrics", to={path: 1.0})
        found[f"leaf_named_{name}"] = meta("leaves", to={path: {"shape": [1], "dtype": "float32"}})
        found[f"set_{name}"] = one_row(set=f"x/../../outside/{path}")
    return found


def _numbers() -> dict[str, Change]:
    """Returns numbers that no counter has, and records of other kinds."""
    found: dict[str, Change] = {}
    odd = {
        "huge": 10**30, "negative": -1, "text": "4", "float": 4.0, "bool": True, "null": None,
        "list": [4], "object": {"a": 4}, "unicode": "\u0664",
    }  # fmt: skip
    for name, value in odd.items():
        for key in ("step", "format_version", "attempt", "run_id", "fingerprints", "files"):
            found[f"{key}_{name}"] = record(**{key: value})
        found[f"size_{name}"] = recorded_files(**{"meta.json": [value, value]})
        found[f"progress_{name}"] = meta("progress", "step", to=value)
        found[f"processes_{name}"] = meta("process_count", to=value)
        found[f"batches_{name}"] = meta("loaders", "train", "batches", to=value)
        found[f"pass_{name}"] = meta("loaders", "train", "pass_index", to=value)
        found[f"seed_{name}"] = meta("config", "trainer", "seed", to=value)
        found[f"rows_{name}"] = meta("loggers", "FileLogger_0", "rows", to=value)
        found[f"failed_{name}"] = beside(
            "checkpoints/FAILED.json", data=json.dumps({"step": value, "count": value}).encode()
        )
    for name in ("\u0664", "04", "-4", "9" * 200, "4 ", "4.tmp", "..4", "CON"):
        found[f"folder_{name[:8]}"] = _named(name)
    return found


def _named(name: str) -> Change:
    return lambda run: step_of(run).rename(step_of(run).with_name(name)) and None


def variants() -> dict[str, Change]:
    """Returns every change by its name."""
    pickles = ["meta.json", "rank.json", "COMMIT.json"]
    beside_them = ["exmp_input.pkl", "optimizer.pickle", "config.yaml", "sitecustomize.py"]
    unpickled = {f"pickle_{name}": content(name, PICKLE) for name in pickles}
    yaml = b"!!python/object/apply:os.system ['touch loaded']\n"
    return {
        **unpickled,
        "pickle_run": beside("checkpoints/RUN.json", "checkpoints/FAILED.json", "config.json"),
        "pickle_arrays": array_file,
        "pickle_beside": beside(*beside_them, *(f"checkpoints/4/{n}" for n in beside_them)),
        "yaml_meta": content("meta.json", yaml),
        "yaml_record": content("COMMIT.json", yaml),
        "arrays_swapped": array_file_swapped,
        "npz_objects": objects,
        "state_metadata": state_metadata,
        "state_levels": content("state/_METADATA", b"[" * 10**5 + b"]" * 10**5),
        "cache": lambda run: meta(
            "config", "trainer", "compilation_cache", to=str(outside(run) / "cache")
        )(run),
        "code_beside": beside(f"{CANARY}.py", "zoo.py", "json.py", data=b"open('hit', 'w')"),
        **_configs(),
        **_json(),
        **_shapes(),
        **_places(),
        **_numbers(),
    }

"""Does any text in a config, a command line, a record or a name end in an error of ours?"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import xtrainer as xt
from xtrainer.checkpoint import CheckpointItems, CheckpointManager, gather_meta, read_meta
from xtrainer.checkpoint.commit import COMMIT_FILE, _own_checksum, read_commit
from xtrainer.config import Config, from_config_dict, parse_config
from xtrainer.data import decode_spec
from xtrainer.errors import XTrainerError
from xtrainer.loggers.file import FileLogger

CONFIGS = (xt.TrainerConfig, xt.ModelConfig, xt.OptimizerConfig, xt.LoggerConfig)
NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "../a",
            "/etc/passwd",
            "..",
            "a\0b",
            "a/b",
            "C:\\a",
            "NUL",
            "os.system",
            "$tuple",
            "\ud800",
        ]
    ),
)
KEYS = st.one_of(
    NAMES,
    st.sampled_from(
        [
            "class_name", "$tuple", "$float", "$path", "$dtype", "$spec", "$pairs", "not_saved",
            "_target_", "seed", "callbacks", "logger", "precision", "model_class", "model_config",
            "parallel", "name", "scheduler", "kwargs", "lr", "log_path", "log_tools",
        ]
    ),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)
few = settings(
    derandomize=True,
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a small step."""
    folder = tmp_path_factory.mktemp("run")
    manager = CheckpointManager(folder)
    state = {"w": jnp.arange(4.0)}
    mesh = xt.build_mesh(xt.ParallelConfig())
    meta = gather_meta(
        state, progress={}, loaders={}, callbacks={}, config={}, batch_spec=None, mesh=mesh,
        metrics={},
    )  # fmt: skip
    manager.save(3, CheckpointItems(state, meta))
    manager.close()
    return folder / "3"


def survives(act: Any) -> Any:
    """Returns what an action gives, None for an error of ours; every other error is raised."""
    try:
        return act()
    except XTrainerError as error:
        assert str(error)
        return None


@given(st.sampled_from(CONFIGS), JSON, st.booleans())
@few
def test_configs_from_any_data(kind: type[Config], data: Any, is_strict: bool) -> None:
    survives(lambda: Config.from_dict(kind, data, strict_classname_parsing=is_strict))
    survives(lambda: Config.from_dict(kind, {"class_name": kind.__name__, "name": data}))


@given(st.sampled_from(CONFIGS), st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=3))
@few
def test_configs_from_any_config_dict(kind: type[Config], data: dict[str, Any]) -> None:
    try:
        given_config = ConfigDict(data)
    except (ValueError, TypeError, AttributeError):  # ml_collections itself takes no such keys
        return
    survives(lambda: from_config_dict(kind, given_config))


@given(
    NAMES, NAMES, st.sampled_from(["--config.{}={}", "--config.a={1}", "--config.b.c={1}", "{}"])
)
@few
def test_any_command_line(name: str, value: str, form: str) -> None:
    config = ConfigDict({"a": 3, "b": {"c": (1, 2), "d": "x"}, "e": None})
    survives(lambda: parse_config(config, [form.format(name, value)]))
    assert config.a == 3


@given(
    data=JSON, key=st.sampled_from(["step", "files", "run_id", "attempt", "fingerprints", "new"])
)
@few
def test_any_record_with_its_checksum(step: Path, data: Any, key: str) -> None:
    path = step / COMMIT_FILE
    good = path.read_bytes()
    record = json.loads(good)
    record.pop("crc32c")
    record[key] = data
    try:
        path.write_text(json.dumps({**record, "crc32c": _own_checksum(record)}))
        found = survives(lambda: read_commit(step))
        if found is not None:
            assert type(found.step) is int and type(found.run_id) is str
            assert not any(".." in Path(name).parts or name[0] in "/" for name in found.files)
        survives(lambda: read_meta(step))
    finally:
        path.write_bytes(good)
    assert read_commit(step).step == 3


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 2000),
)
@few
def test_any_bytes_as_a_record_and_as_metadata(
    step: Path, flips: list[tuple[int, int]], cut: int
) -> None:
    for name, read in ((COMMIT_FILE, read_commit), ("meta.json", read_meta)):
        good = (step / name).read_bytes()
        changed = bytearray(good[: cut or None])
        for place, value in flips:
            changed[place % len(changed)] = value
        try:
            (step / name).write_bytes(changed)
            survives(lambda read=read: read(step))
        finally:
            (step / name).write_bytes(good)


@given(JSON)
@few
def test_any_description_of_a_batch(data: Any) -> None:
    survives(lambda: decode_spec(data))
    for kind in ("array", "dict", "list", "tuple", "Batch"):
        survives(
            lambda kind=kind: decode_spec(
                {"kind": kind, "items": data, "shape": data, "dtype": data}
            )
        )


@given(mode=NAMES, key=NAMES, value=st.floats() | st.integers() | st.text(max_size=3))
@few
def test_any_name_of_a_set_and_of_a_metric(tmp_path: Path, mode: str, key: str, value: Any) -> None:
    logger = FileLogger(tmp_path / "run")
    survives(lambda: logger.log_metrics({key: value}, 1, mode, 1))
    logger.finalize("completed")
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}
    if (tmp_path / "run").exists():
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert all(name.startswith("metrics") for name in names)

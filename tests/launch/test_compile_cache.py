"""The persistent compilation cache: what it has, what it lacks and why, and whom it trusts."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from zoo import make_trainer

from xtrainer.errors import ConfigError
from xtrainer.launch import CacheCounts, CompilationCache, compilation_cache
from xtrainer.launch.local import run_local

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from xtrainer.launch import enable_compilation_cache
if "join" in sys.argv:
    from xtrainer.launch import initialize
    initialize()
cache = enable_compilation_cache()
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))

def train_step(x):
    return jnp.tanh(x @ x).sum()

def eval_step(x):
    return jnp.cos(x).sum()

mesh = jax.make_mesh((jax.device_count(),), ("dp",))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("dp"))
for f in (train_step, eval_step):
    x = jax.ShapeDtypeStruct((8, 8), "float32", sharding=whole)
    cache.compile(jax.jit(f).lower(x), f.__name__)
said = {
    "folder": cache.folder,
    "hits": [r.hit for r in cache.report()],
    "reasons": [r.reason for r in cache.report()],
    "events": [events.count("cache_hits"), events.count("cache_misses")],
    "counts": [cache.counts().hits, cache.counts().misses],
}
print(json.dumps(said))
"""


@pytest.fixture
def start(monkeypatch):
    """Returns what gives a cache as a new process has it; the process's settings come back."""
    caches = []
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)

    def new(folder: Path | str | None = None, jaxs_folder: str | None = None) -> CompilationCache:
        for name, value in SETTINGS.items():
            jax.config.update(name, value)
        jax.config.update("jax_compilation_cache_dir", jaxs_folder)
        jax_cache.reset_cache()
        cache = CompilationCache()
        caches.append(cache)
        if folder is not None:
            cache.enable(folder)
        return cache

    yield new
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()
    for cache in caches:
        if cache._listens:
            jax.monitoring.unregister_event_listener(cache._on_event)


def lower(scale: float = 1.0, size: int = 8) -> jax.stages.Lowered:
    def train_step(x):
        return jnp.tanh(x @ x).sum() * scale

    return jax.jit(train_step).lower(jax.ShapeDtypeStruct((size, size), "float32"))


def compile_step(cache: CompilationCache, scale: float = 1.0, name: str = "train_step"):
    compiled = cache.compile(lower(scale), name)
    assert compiled(jnp.zeros((8, 8))) == 0
    return cache.report()[-1]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("jit_train_step-*-cache"))


def run_program(home: Path, flags: str = "") -> dict:
    """Runs the program in a process that knows no other cache."""
    environ = {key: v for key, v in os.environ.items() if not key.startswith("JAX_")}
    environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    environ["XDG_CACHE_HOME"] = str(home)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """What three starts say: two of the same program, one with another flag of XLA."""
    home = tmp_path_factory.mktemp("home")
    flags = ["", "--xla_dump_max_hlo_modules=3", "--xla_cpu_enable_fast_min_max=true"]
    return home, [run_program(home, flag) for flag in flags]


def test_the_first_start_compiles_into_the_folder_of_the_user(starts):
    home, (first, _, _) = starts
    assert first["folder"] == str(home / "xtrainer" / "compilation")
    assert first["hits"] == [False, False]
    assert first["reasons"] == ["never compiled before"] * 2
    assert first["events"] == first["counts"] == [0, 2]
    for folder in (home / "xtrainer", home / "xtrainer" / "compilation"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_second_start_compiles_nothing(starts):
    _, (_, second, _) = starts  # with a flag that changes no program
    assert second["hits"] == [True, True]
    assert second["events"] == second["counts"] == [2, 0]


def test_another_flag_of_xla_is_said_to_be_the_reason(starts):
    _, (_, _, third) = starts
    assert third["hits"] == [False, False]
    assert third["reasons"] == ["XLA_FLAGS (none) -> --xla_cpu_enable_fast_min_max=true"] * 2


@pytest.mark.processes
def test_only_the_first_of_several_processes_writes(tmp_path, capfd, monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", PROGRAM, "join"]
    said = []
    for _ in range(2):
        assert run_local(command, 2, devices_per_process=1, timeout_s=120) == 0
        lines = sorted(line for line in capfd.readouterr().out.splitlines() if "hits" in line)
        said.append([json.loads(line.partition("] ")[2]) for line in lines])
    (first, other), (again, other_again) = said
    assert first["reasons"] == other["reasons"] == ["never compiled before"] * 2
    assert first["events"] == [0, 2] and other["events"] == [0, 0]  # JAX writes nothing there
    assert again["events"] == [2, 0] and other_again["counts"] == [0, 2]
    # On the CPU JAX's keys differ between processes.
    assert all("process 0 alone writes" in reason for reason in other_again["reasons"])


def test_a_changed_program_is_said_to_have_changed(start, tmp_path):
    compile_step(start(tmp_path / "a"))
    record = compile_step(start(tmp_path / "a"), scale=2.0)
    assert (record.hit, record.reason) == (False, "the program of train_step has changed")
    assert compile_step(start(tmp_path / "a"), scale=1.0).hit  # the older one is there as well


def test_another_jaxlib_is_said_to_be_the_reason(start, tmp_path):
    compile_step(start(tmp_path / "a"))
    index = tmp_path / "a" / "xtrainer-index.json"
    index.write_text(
        index.read_text().replace(f'"jaxlib": "{jax.lib.__version__}"', '"jaxlib": "0.9.0"')
    )
    (entry,) = entries(tmp_path / "a")
    entry.unlink()
    record = compile_step(start(tmp_path / "a"))
    assert record.reason == f"jaxlib 0.9.0 -> {jax.lib.__version__}"


def test_an_entry_that_is_gone_is_said_to_be_gone(start, tmp_path):
    compile_step(start(tmp_path / "a"))
    (entry,) = entries(tmp_path / "a")
    entry.unlink()
    assert compile_step(start(tmp_path / "a")).reason.startswith("there is no entry for it")
    assert compile_step(start(tmp_path / "a")).hit


def test_a_program_that_calls_the_host_is_said_not_to_be_kept(start, tmp_path):
    for _ in range(2):
        cache = start(tmp_path / "a")

        def noisy(x):
            jax.debug.print("{}", x)
            return x

        cache.compile(jax.jit(noisy).lower(1.0), "noisy")
        assert cache.report()[0].reason == "JAX keeps no program that calls back to the host"


def test_without_a_cache_programs_are_compiled_all_the_same(start):
    cache = start()
    record = compile_step(cache)
    assert (record.hit, record.reason) == (None, "no compilation cache")
    assert cache.folder is None
    assert cache.counts() == CacheCounts(0, 0)


def test_the_summary_is_one_line(start, tmp_path):
    compile_step(start(tmp_path / "a"))
    cache = start(tmp_path / "a")
    assert cache.summary() == "compiled nothing"
    compile_step(cache)
    compile_step(cache, scale=3.0, name="eval_step")
    train, evaluation = cache.summary().split(", eval_step in ")
    assert train.startswith("compiled train_step in ")
    assert train.endswith(" s saved)") and "(cache hit, " in train
    assert evaluation.endswith("s (cache miss: never compiled before)")


def test_threads_are_told_apart(start, tmp_path):
    compile_step(start(tmp_path / "a"))
    cache = start(tmp_path / "a")
    barrier = threading.Barrier(2)

    def work(lowered: list, name: str) -> None:
        for program in lowered:
            barrier.wait(timeout=30)
            cache.compile(program, name)

    jobs = [([lower() for _ in range(8)], "old"), ([lower(2.0 + i) for i in range(8)], "new")]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hits = {(record.name, record.hit) for record in cache.report()}
    assert hits == {("old", True), ("new", False)}
    assert cache.counts() == CacheCounts(hits=8, misses=8)


DAMAGES = {
    "flipped": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "foreign": lambda content: b"x" * len(content),
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_damaged_entry_is_replaced(start, tmp_path, caplog, damage, is_known):
    compile_step(start(tmp_path / "a"))
    (entry,) = entries(tmp_path / "a")
    entry.write_bytes(DAMAGES[damage](entry.read_bytes()))
    if not is_known:  # the writer was killed before it could write the index
        index = tmp_path / "a" / "xtrainer-index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "entries": {}}))
        os.utime(entry, (1e9, 1e9))
    record = compile_step(start(tmp_path / "a"))
    assert (record.hit, record.reason) == (False, "its entry was damaged")
    assert "Removed 1 damaged entries" in caplog.text
    assert compile_step(start(tmp_path / "a")).hit


def test_an_entry_that_went_bad_by_itself_costs_a_compilation(start, tmp_path):
    compile_step(start(tmp_path / "a"))
    (entry,) = entries(tmp_path / "a")
    times = entry.stat().st_atime_ns, entry.stat().st_mtime_ns
    entry.write_bytes(DAMAGES["flipped"](entry.read_bytes()))
    os.utime(entry, ns=times)
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        record = compile_step(start(tmp_path / "a"))
    assert (record.hit, record.reason) == (False, "its entry was damaged")
    assert not compile_step(start(tmp_path / "a")).hit  # JAX has not written it anew before
    assert compile_step(start(tmp_path / "a")).hit


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[" * 100_000,
        b"[]",
        b'{"version": 2, "programs": {}, "entries": {}}',
        b'{"version": 1, "programs": {"train_step": 3}, "entries": {}}',
        b'{"version": 1, "programs": {"train_step": [{}]}, "entries": {}}',
        b'{"version": 1, "programs": {}, "entries": {"a": [1, 2]}}',
    ],
)
def test_a_damaged_index_is_none(start, tmp_path, content):
    compile_step(start(tmp_path / "a"))
    index = tmp_path / "a" / "xtrainer-index.json"
    index.write_bytes(content)
    assert compile_step(start(tmp_path / "a")).hit
    compile_step(start(tmp_path / "a"))
    assert "train_step" in json.loads(index.read_text())["programs"]


def test_a_second_call_changes_nothing(start, tmp_path):
    cache = start(tmp_path / "a")
    cache.enable(tmp_path / "a")
    cache.enable()
    assert cache.folder == str(tmp_path / "a")
    compile_step(cache)
    assert cache.counts() == CacheCounts(hits=0, misses=1)


def test_another_folder_takes_over(start, tmp_path):
    cache = start(tmp_path / "a")
    compile_step(cache)
    cache.enable(tmp_path / "b")
    assert compile_step(cache).reason == "never compiled before"
    assert len(entries(tmp_path / "a")) == len(entries(tmp_path / "b")) == 1


def test_a_folder_that_jax_was_given_is_kept(start, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cache = start(jaxs_folder=str(tmp_path / "jax"))
    for folder in (tmp_path / "own", None, tmp_path / "own"):
        cache.enable(folder)
    assert cache.folder == jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    assert caplog.text.count(f"JAX's own setting says: {tmp_path / 'jax'}") == 1
    compile_step(cache)
    assert len(entries(tmp_path / "jax")) == 1
    assert not (tmp_path / "own").exists()


def test_thresholds_that_the_user_has_set_are_kept(start, tmp_path):
    cache = start()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 60.0)
    cache.enable(tmp_path / "a")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 60.0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
    assert compile_step(cache).reason.endswith("nor one below its thresholds, which were set")


def test_a_cache_that_jax_has_switched_off_stays_off(start, tmp_path, monkeypatch):
    cache = start()
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        cache.enable(tmp_path / "a")
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert cache.folder is None
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written_to_ends_no_run(start, tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = start(tmp_path / "file" / "a")
    cache.enable(tmp_path / "file" / "a")
    assert caplog.text.count("cannot be written to") == 1
    assert jax.config.jax_compilation_cache_dir is None
    assert compile_step(cache).hit is None


def test_a_trainer_keeps_its_programs(start, tmp_path):
    start()
    compilation_cache.cache_clear()
    trainer = make_trainer(compilation_cache=str(tmp_path / "a"))
    try:
        assert compilation_cache().folder == str(tmp_path / "a")
        assert trainer.trainer_config.compilation_cache == str(tmp_path / "a")
        assert list((tmp_path / "a").glob("*-cache"))  # the state has been initialized
    finally:
        jax.monitoring.unregister_event_listener(compilation_cache()._on_event)
        compilation_cache.cache_clear()


def test_a_trainer_refuses_a_folder_of_others(start, tmp_path):
    start()
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    compilation_cache.cache_clear()
    with pytest.raises(ConfigError, match="compilation_cache: found the folder"):
        make_trainer(compilation_cache=str(tmp_path / "a"))
    compilation_cache.cache_clear()

"""Does a run without memory end with what helps, and lose no checkpoint? Does a long one leak?"""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import probes
import pytest

import xtrainer as xt
from xtrainer.checkpoint import list_steps

TESTS = Path(__file__).resolve().parents[1]
HUNGRY = """
import mmap, resource, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import jax.numpy as jnp
import probes, zoo
import xtrainer as xt

class Hungry(probes.Traced):
    def loss_function(self, params, apply_fn, batch, rng, train=True):
        loss, rest = super().loss_function(params, apply_fn, batch, rng, train)
        if not train:
            return loss, rest
        # 200 MB that no compiler can do without.
        x = jnp.arange(5_000, dtype=jnp.float32) * batch["ids"].sum()
        square = jnp.sin(x[:, None] + x[None, :] + params["Dense_0"]["bias"][0])
        return loss + 0 * (square @ square[:, :1]).sum(), rest

folder = Path(sys.argv[1])
trainer = probes.traced(
    trainer_class=Hungry,
    logger=zoo.file_logger(folder),
    callbacks=[xt.ModelCheckpointConfig(every_n_epochs=99, save_on_start=True)],
)

def has_room():
    try:
        mmap.mmap(-1, 60 * 2**20).close()
    except OSError:
        return False
    return True

def limit(trainer, *args):
    saved = (folder / "checkpoints" / "0").exists()
    if not saved or sys.argv[2] != "limited":
        return
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    while has_room():  # what the last step has taken may be given back meanwhile
        resource.setrlimit(resource.RLIMIT_AS, (size, -1))
        size -= 20 * 2**20

def free(trainer, *args):
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))  # only the device has none: not what follows

trainer.callbacks.insert(0, probes.acting("on_training_step", limit)(trainer))
trainer.callbacks.insert(0, probes.acting("on_exception", free)(trainer))
trainer.train_model(probes.numbered(7), probes.numbered(1, first=9), num_epochs=2)
print("ended", trainer.global_step)
"""


def hungry(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    program = HUNGRY.format(paths=[str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-c", program, str(folder), how]
    # One arena: what threads have mapped and do not use would count against the limit.
    environ = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=environ
    )


def test_without_memory_a_step_fails_and_the_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    failed = hungry(tmp_path, "limited")
    assert failed.returncode == 1, failed.stderr
    assert "RESOURCE_EXHAUSTED" in failed.stderr
    assert "There was not enough memory at step" in failed.stderr
    assert "bytes, and a batch has 4 rows over 1 devices in 1 parts" in failed.stderr
    assert 0 in list_steps(tmp_path / "checkpoints")
    again = hungry(tmp_path, "unlimited")
    assert (again.returncode, again.stdout.split()[-2:]) == (0, ["ended", "14"]), again.stderr


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once."""
    return probes.Repeatable(probes.traced())


def open_things() -> tuple[int, int]:
    """Returns how many files and threads this process has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def one_run(stage: probes.Repeatable, folder: Path, steps: int) -> None:
    saving = xt.ModelCheckpointConfig(every_n_steps=5, every_n_epochs=99)
    trainer = stage.begin(saving, folder=folder, every=2, check_val_every_n_steps=4)
    trainer.train_model(probes.numbered(7), probes.numbered(2, first=100), num_train_steps=steps)


def test_runs_leave_no_file_and_no_thread_behind(stage: probes.Repeatable, tmp_path: Path) -> None:
    for number in range(3):  # what is opened once stays
        one_run(stage, tmp_path / f"first_{number}", 12)
    before = open_things()
    for number in range(5):
        one_run(stage, tmp_path / f"later_{number}", 12)
    assert open_things() == before


WATCHED = """
import ctypes, gc, resource, shutil, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import orbax.checkpoint as ocp
import probes, zoo
import xtrainer as xt

folder = Path(sys.argv[1])

def resident():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

class Watching(xt.Callback):
    # Unlike a recorder it keeps nothing.
    def on_training_step(self, step_metrics, epoch_idx, step_idx):
        if step_idx in seen:
            seen[step_idx] = resident()

def train(saving, first, last):
    seen.update({{first: 0, last: 0}})
    trainer = probes.traced(logger=zoo.file_logger(folder, 2), callbacks=[saving])
    trainer.callbacks.insert(0, Watching(xt.CallbackConfig(), trainer))
    trainer.train_model(probes.numbered(7), num_train_steps=last)
    return seen[last] - seen[first]

seen = {{}}
"""


def watched(folder: Path, code: str) -> list[float]:
    """Returns the numbers that a program prints last; pytest would keep what a run here logs."""
    program = WATCHED.format(paths=[str(TESTS.parent), str(TESTS)]) + code
    environ = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", program, str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env=environ
    )
    return [float(word) for word in result.stdout.splitlines()[-1].split()]


LONG = """
from xtrainer.metrics import history
history.MAX_ROWS = 1_000  # so that it is full, and grows no more, before the first look
# No validation: the results of all are kept, since train_model returns them.
saving = xt.ModelCheckpointConfig(every_n_steps=2000, every_n_epochs=9999)
print(train(saving, 8_000, 40_000))  # until then the allocator takes what it goes on using
"""


@pytest.mark.slow
def test_a_long_run_takes_no_more_memory(tmp_path: Path) -> None:
    (grown,) = watched(tmp_path, LONG)
    assert grown < 4 * 2**20, f"{grown / 2**20:.1f} MiB in 32,000 steps"


SAVES = """
FIRST, LAST = 100, 500
state = probes.traced().state
writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
for number in range(1, LAST + 1):
    writer.save(folder / str(number), args=ocp.args.PyTreeSave(state))
    writer.wait_until_finished()
    shutil.rmtree(folder / str(number))
    if number in (FIRST, LAST):
        seen[number] = resident()
alone = seen[LAST] - seen[FIRST]
ours = train(xt.ModelCheckpointConfig(every_n_steps=1, every_n_epochs=9999), FIRST, LAST)
print(alone / (LAST - FIRST), ours / (LAST - FIRST))
"""


@pytest.mark.slow
def test_a_save_leaves_no_more_behind_than_orbax_does(tmp_path: Path) -> None:
    # TensorStore 0.1.86 keeps some KB of each look at its metrics, which Orbax takes at each save.
    alone, ours = watched(tmp_path, SAVES)
    assert ours < alone + 4 * 2**10, f"{ours:.0f} bytes a save, Orbax alone {alone:.0f}"

"""What happens while a changed run folder is opened? Watches itself, and prints a line for each.

Called with a folder to work in; reads names of variants from its standard input.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import corpus
import probes
import zoo

import xtrainer as xt

LIMIT_S = 20
FORBIDDEN = (
    "pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn",
    "os.fork", "os.forkpty", "socket.bind", "socket.connect", "ctypes.dlopen", "exec",
    "marshal.loads", "marshal.load",
)  # fmt: skip
CHANGING = (
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes what the interpreter does while ``place`` is set, but for files in that folder."""

    def __init__(self) -> None:
        self.place: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.place is None:
            return
        if event == "import":
            if args[0] not in sys.modules:
                self.seen.append(f"import {args[0]}")
        elif event == "open":
            if isinstance(args[2], int) and args[2] & WRITES and self._is_elsewhere(args[0]):
                self.seen.append(f"open {args[0]} to write")
        elif event in CHANGING:
            paths = args[:2] if event in ("os.rename", "os.link", "shutil.move") else args[:1]
            for path in paths:
                if self._is_elsewhere(path, follow=False):
                    self.seen.append(f"{event} {path}")
        elif event in FORBIDDEN and args != (None,):  # a library of this process itself
            self.seen.append(f"{event} {str(args)[:200]}")

    def _is_elsewhere(self, path: Any, follow: bool = True) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a number, of a file that was opened before
        text = os.fsdecode(path)
        if not follow:
            text = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        found = os.path.realpath(text) if follow else text
        return found != "/dev/null" and not f"{found}/".startswith(f"{self.place}/")


class Bare(zoo.Classifier):
    """Takes the class of its model from the checkpoint."""

    model_class = None


class Opener:
    """The ways to open a run folder; trainers are made once where they can be used again."""

    def __init__(self) -> None:
        self._again = probes.Repeatable(zoo.make_trainer())
        self._plain = zoo.make_trainer()
        self._turn = False

    def ways(self) -> dict[str, Callable[[Path], Any]]:
        """Returns them by name; of the two slow ones that differ in a word, one and the other."""
        self._turn = not self._turn
        slow = "from_run" if self._turn else "load_from_checkpoint"
        return {
            slow: getattr(zoo.Classifier, slow),
            "bare": Bare.load_from_checkpoint,
            "pretrained": self._plain.load_pretrained_model,
            "mapped": lambda run: self._plain.load_pretrained_model(
                run, param_map=xt.PretrainedMap(skip=["params/Dense_1/*"], ignore=["*"])
            ),
            "resume": self.resume,
        }

    def resume(self, run: Path) -> None:
        """Goes on with the run."""
        trainer = self._again.begin(xt.ModelCheckpointConfig(), folder=run)
        trainer.train_model(zoo.loader(), num_epochs=2, resume="auto")


def make_run(run: Path) -> None:
    """Trains the run that is changed."""
    logger = zoo.file_logger(run)
    trainer = zoo.make_trainer(logger=logger, callbacks=[xt.ModelCheckpointConfig()])
    trainer.train_model(zoo.loader(), num_epochs=1)
    trainer.logger.finalize("completed")


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what hangs."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def snapshot(folder: Path) -> dict[str, Any]:
    """Returns what lies in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path)] = path.read_bytes() if is_file else None
    return found


def attempt(
    watch: Watch, way: Callable[[Path], Any], run: Path, limit_s: int = LIMIT_S
) -> dict[str, Any]:
    """Opens a run and returns how it ended."""
    before = snapshot(corpus.outside(run))
    memory, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    watch.seen, error = [], None
    watch.place = str(run)
    try:
        with limited(limit_s):
            way(run)
    except BaseException as found:
        error = found
    finally:
        watch.place = None
    return {
        "error": None if error is None else f"{type(error).__name__}: {str(error)[:300]}",
        "is_typed": error is None or isinstance(error, xt.XTrainerError),
        "seen": watch.seen,
        "seconds": time.monotonic() - begin,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024,
        "is_outside_whole": snapshot(corpus.outside(run)) == before,
        "is_unexecuted": sorted(path.name for path in Path.cwd().iterdir()) == HERE,
    }


def prepared(work: Path, original: Path, change: corpus.Change | None) -> Path:
    """Returns a fresh copy of the run with a change, and a folder beside it with a victim."""
    for path in Path.cwd().iterdir():
        if path.name not in HERE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("run", "outside"):
        shutil.rmtree(work / name, ignore_errors=True)
    shutil.copytree(original, work / "run")
    (work / "outside" / "victim").parent.mkdir()
    (work / "outside" / "victim").write_text('{"a": 1}\n')
    if change is not None:
        change(work / "run")
    return work / "run"


def dangerous(work: Path) -> dict[str, Callable[[Path], Any]]:
    """Returns what must be seen: the watch itself is tried with it."""
    import pickle

    return {
        "unpickled": lambda run: pickle.loads(pickle.dumps(corpus.outside)),
        "imported": lambda run: __import__(corpus.CANARY),
        "written": lambda run: (work / "outside" / "new").write_text("a"),
        "removed": lambda run: (work / "outside" / "victim").unlink(),
        "linked": lambda run: (run / "metrics.jsonl").write_text("a"),
        "evaluated": lambda run: eval("1"),
        "hung": lambda run: open(run / "config.json"),
    }


def main() -> None:
    """Opens every variant in every way."""
    work = Path(sys.argv[1])
    (work / "home").mkdir()
    os.chdir(work / "home")
    (work / "home" / f"{corpus.CANARY}.py").write_text("open('imported', 'w').close()\n")
    sys.path.append(str(work / "home"))
    sys.dont_write_bytecode = True
    HERE[:] = [f"{corpus.CANARY}.py"]
    original = work / "original"
    make_run(original)
    opener, watch, changes = Opener(), Watch(), corpus.variants()
    for change in (None, None, changes["pickle_meta.json"], changes["leaf_large"]):
        for way in opener.ways().values():
            attempt(watch, way, prepared(work, original, change))
    for name in sys.stdin.read().split("\0"):
        found = {}
        if name == "dangerous":
            for key, way in dangerous(work).items():
                run = prepared(work, original, None)
                if key in ("linked", "hung"):
                    path = {"linked": "metrics.jsonl", "hung": "config.json"}[key]
                    make = {"linked": corpus.victim, "hung": corpus.fifo}[key]
                    corpus.instead(path, make)(run)
                found[key] = attempt(watch, way, run, limit_s=1)
        else:
            change = None if name == "unchanged" else changes[name]
            for key, way in opener.ways().items():
                found[key] = attempt(watch, way, prepared(work, original, change))
        print(json.dumps([name, found]), flush=True)


HERE: list[str] = []

if __name__ == "__main__":
    main()

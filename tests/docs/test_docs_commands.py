"""Does every command of the README and of the documentation do what it is said to do?

What a command needs that only the reader has (a run, a larger machine) is put in its place here;
commands that nothing can stand in for are told with the reason.
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs_pages import ROOT, blocks, page_blocks, page_names

import xtrainer as xt
from xtrainer.cli import main

ELSEWHERE = {
    r"pip install .*": "installs; .ci/run does so in a fresh environment",
    r"python -m pytest": "is what runs this",
    r"tensorboard --logdir .*": "serves until it is ended; the tests of its logger open it",
    r"sbatch .*": "needs SLURM; the tests of the recipes read the scripts",
    r"TPU_NAME=.* experiments/launch/tpu_pod.sh .*": "needs a TPU; its tests stand in for gcloud",
    r"kubectl .*": "needs a cluster; the tests of the recipes read the file",
}
"""Commands that are not run here, and why."""
STEPS = ("--config.num_train_steps=12",)
SHRUNK = (
    "--config.data.root={text}",
    "--config.model.model_config.num_layers=1",
    "--config.model.model_config.embed_dim=32",
    "--config.model.model_config.mlp_dim=32",
    "--config.model.model_config.context_length=16",
    "--config.data.batch_size=16",
    "--config.data.eval_batch_size=16",
    "--config.data.eval_bytes=2048",
)
BROKEN = (
    "--config.trainer.callbacks[0].save_on_start=True",
    "--config.optimizer.scheduler.lr=1e38",
)
"""With these a step is refused."""


@dataclass(frozen=True)
class Way:
    """How a command is run.

    Attributes:
        pattern: Of the whole command.
        more: What is added to it.
        changes: What is put in the place of words of it.
        first: Commands that are run before it.
        code: What it ends with.
        is_slow: Whether the default run goes without it.
        is_inside: Whether it is run in this process, since it starts no devices.
        eight: Whether it sees eight devices; otherwise those of this machine.
    """

    pattern: str
    more: tuple[str, ...] = ()
    changes: tuple[tuple[str, str], ...] = ()
    first: tuple[str, ...] = ()
    code: int = 0
    is_slow: bool = True
    is_inside: bool = False
    eight: bool = False


NONFINITE = "python experiments/byte_lm.py --config.trainer.logger.log_path=runs/nan"
TRAIN_A, TRAIN_B = (
    "python experiments/byte_lm.py --config.trainer.gradient_accumulate_steps=4 "
    f"--config.trainer.logger.log_path=runs/{name}{more}"
    for name, more in (("a", ""), ("b", " --config.optimizer.scheduler.lr=1e-3"))
)
WAYS = [
    Way(re.escape(NONFINITE), (*SHRUNK, *STEPS, *BROKEN), code=3),
    Way(r"python experiments/byte_lm.py.*steps=4.*", (*SHRUNK, *STEPS), is_slow=False),
    Way(r"python experiments/byte_lm.py.*parallel.*", (*SHRUNK, *STEPS), eight=True),
    Way(r"python experiments/byte_lm.py.*", (*SHRUNK, *STEPS)),
    Way(
        r"python experiments/evaluate.py runs/a",
        first=(TRAIN_A,),
        is_slow=False,
    ),
    Way(r"(python -m xtrainer.launch|xtrainer launch -n) .*", (*SHRUNK, *STEPS)),
    Way(r"xtrainer launch --slurm .*", is_slow=False, is_inside=True),
    Way(r"xtrainer train .*", (*SHRUNK, *STEPS)),
    Way(r"xtrainer diff runs/a runs/b", first=(TRAIN_A, TRAIN_B), code=1),
    Way(r"xtrainer evaluate runs/a .*", first=(TRAIN_A,)),
    Way(r"xtrainer report runs/a runs/b .*", first=(TRAIN_A, TRAIN_B)),
    Way(r"xtrainer (inspect|report) runs/a.*", first=(TRAIN_A,), is_slow=False, is_inside=True),
    Way(r"xtrainer (list runs|completion .*)", is_slow=False, is_inside=True),
    Way(r"python experiments/gan.py .*", ("--config.data.batch_size=16", *STEPS)),
    Way(r"python experiments/(digits|sweep|study).py .*", ("--config.num_epochs=1",)),
    Way(r"python -m benchmarks --only mlp", ("--repeats", "1")),
    Way(r"xtrainer plan [^-]*", ("--no-compile",), is_slow=False, is_inside=True),
    Way(r"xtrainer plan .*"),
    Way(r"xtrainer verify-resume .*", SHRUNK),
    Way(r"xtrainer drill .*", (*SHRUNK, "--kill9", "--nan", "--config.num_train_steps=24")),
    Way(
        r"xtrainer replay RUN --experiment FILE",
        (*SHRUNK, *STEPS, *BROKEN),
        (("RUN", "runs/nan"), ("FILE", "experiments/byte_lm.py")),
        first=(NONFINITE,),
    ),
]
"""The first that fits counts."""


def commands_of(text: str) -> list[str]:
    """Returns the commands of a block without what is said of them, and where they write to."""
    lines = [re.sub(r"\s+[#>] .*", "", line) for line in text.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [" ".join(part.split()) for part in parts if part and not part.startswith("#")]


def all_commands() -> list[str]:
    """Returns each command once, in the order of the README and the pages."""
    readme = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    pages = [block for name in page_names() for block in page_blocks(name)]
    found = [c for b in [*readme, *pages] if b.language == "bash" for c in commands_of(b.text)]
    return list(dict.fromkeys(found))


def way_of(command: str) -> Way:
    """Returns how a command is run."""
    return next(way for way in WAYS if re.fullmatch(way.pattern, command))


def is_elsewhere(command: str) -> bool:
    """Says whether a command is not run here."""
    return any(re.fullmatch(pattern, command) for pattern in ELSEWHERE)


RUN = [command for command in all_commands() if not is_elsewhere(command)]
MARKED = [
    pytest.param(command, marks=pytest.mark.slow) if way_of(command).is_slow else command
    for command in RUN
]


class Shell:
    """A folder with the repository's experiments, in which each command is run once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, {}
        for name in ("experiments", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        self.text = folder / "text"
        self.text.mkdir()
        for index in range(60):
            lines = [f"def function_{index}_{i}(x):\n    return x + {i}\n" for i in range(20)]
            (self.text / f"module_{index}.py").write_text("\n".join(lines))

    def run(self, command: str) -> subprocess.CompletedProcess:
        """Returns how a command has ended."""
        if command not in self.done:
            way = way_of(command)
            for before in way.first:
                self.run(before)
            words = [dict(way.changes).get(word, word) for word in shlex.split(command)]
            words += [word.format(text=self.text) for word in way.more]
            if way.is_inside:
                self.done[command] = self.inside(words[1:])
                return self.done[command]
            start = [sys.executable, *(["-m", "xtrainer"] if words[0] == "xtrainer" else [])]
            environment = {k: v for k, v in os.environ.items() if way.eight or k != "XLA_FLAGS"}
            self.done[command] = subprocess.run(
                [*start, *words[1:]],
                cwd=self.folder,
                env=environment | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=900,
            )
        return self.done[command]

    def inside(self, words: list[str]) -> subprocess.CompletedProcess:
        """Returns how a command has ended that is run in this process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main(words)
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("shell"))


@pytest.mark.parametrize("command", MARKED)
def test_a_command_runs(command: str, shell: Shell) -> None:
    done = shell.run(command)
    assert done.returncode == way_of(command).code, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.mark.parametrize("command", RUN)
def test_a_command_has_the_options_and_settings_it_names(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command.partition(" -- ")[0])
    options = [w.split("=")[0] for w in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", w)]
    if words[0] == "xtrainer":
        assert main([words[1], "--help"]) == 0
        told = capsys.readouterr().out
        assert [option for option in options if f"{option} " not in told.replace(",", " ")] == []
    named = re.search(r"experiments/(\w+)\.py", command)
    settings = [word for word in shlex.split(command) if word.startswith("--config.")]
    if named and settings:
        config = importlib.import_module(named[1]).get_config()
        assert xt.parse_config(config, settings) is not None


def test_every_command_is_run_or_told() -> None:
    assert len(RUN) >= 10
    assert [c for c in RUN if not any(re.fullmatch(way.pattern, c) for way in WAYS)] == []
    assert all(any(re.fullmatch(pattern, c) for c in all_commands()) for pattern in ELSEWHERE)


def test_commands_are_found_without_what_is_said_of_them() -> None:
    block = "# first\na --b   # why\nc && \\\n  d\n"
    assert commands_of(block) == ["a --b", "c", "d"]
    assert is_elsewhere("pip install -e .")
    assert not is_elsewhere("xtrainer plan x.py")

"""Do the shells complete what they are told to?"""

import shutil
import subprocess
from pathlib import Path

import pytest

from xtrainer.cli.main import main


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder with the script of each shell, an experiment and a run."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        with pytest.MonkeyPatch.context() as patch, open(folder / shell, "w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    (folder / "train_me.py").touch()
    (folder / "runs").mkdir()
    return folder


def complete(scripts: Path, *words: str) -> set[str]:
    """Returns what a real bash would offer for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    lines = f"""
source ./bash
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=()
line=$(complete -p xtrainer); [[ $line =~ -F\\ ([^ ]+) ]] || exit 9
"${{BASH_REMATCH[1]}}" xtrainer '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", lines], cwd=scripts, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["xtrainer", "in"], {"inspect"}),
        (["xtrainer", "verify"], {"verify-resume"}),
        (["xtrainer", "list", "--so"], {"--sort"}),
        (["xtrainer", "list", "--sort", "s"], {"status", "step", "size"}),
        (["xtrainer", "completion", ""], {"bash", "zsh"}),
        (["xtrainer", "train", "tr"], {"train_me.py"}),
        (["xtrainer", "inspect", "ru"], {"runs"}),
    ],
)
def test_bash_offers_what_fits(scripts: Path, words: list[str], offered: set[str]) -> None:
    assert {word.rstrip("/") for word in complete(scripts, *words)} >= offered


def test_bash_offers_every_sub_command(scripts: Path) -> None:
    wanted = {"train", "evaluate", "list", "inspect", "diff", "plan", "replay", "drill", "launch"}
    assert wanted <= complete(scripts, "xtrainer", "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_the_script_of_zsh_is_one(scripts: Path) -> None:
    done = subprocess.run(["zsh", "-n", scripts / "zsh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify-resume" in (scripts / "zsh").read_text()


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "xtrainer[completion]"' in capsys.readouterr().err


def test_another_shell_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["completion", "fish"]) == 2
    assert "choose from 'bash', 'zsh'" in capsys.readouterr().err

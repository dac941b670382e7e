"""The experiments, shrunk, end to end: overrides, training, evaluation to the last digit."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import byte_lm
import digits
import evaluate
import pytest

import xtrainer as xt

ROOT = Path(__file__).parents[2]
SMALL_LM = [
    "--config.num_train_steps=6",
    "--config.model.model_config.num_layers=1",
    "--config.model.model_config.embed_dim=32",
    "--config.model.model_config.mlp_dim=32",
    "--config.model.model_config.context_length=16",
    "--config.data.batch_size=16",
    "--config.data.eval_batch_size=16",
    "--config.data.eval_bytes=2048",
    "--config.trainer.logger.log_every_n_steps=2",
]


@pytest.fixture
def small_text(tmp_path: Path) -> Path:
    """Gives a folder of sources in which every set has a file."""
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(60):
        lines = [f"def function_{index}_{i}(x):\n    return x + {i}\n" for i in range(20)]
        (folder / f"module_{index}.py").write_text("\n".join(lines))
    return folder


def lm_config(run: Path, text: Path, *more: str) -> Any:
    """Returns the shrunk config of a run."""
    arguments = [*SMALL_LM, f"--config.trainer.logger.log_path={run}", f"--config.data.root={text}"]
    return xt.parse_config(byte_lm.get_config(), [*arguments, *more])


def test_byte_lm_trains_with_accumulation_and_is_evaluated_to_the_last_digit(
    tmp_path: Path, small_text: Path
) -> None:
    run = tmp_path / "run"
    config = lm_config(run, small_text, "--config.trainer.gradient_accumulate_steps=2")
    results = byte_lm.run(config)
    assert evaluate.evaluate(run) == results["test"]
    assert results["test"]["bits_per_byte"] == pytest.approx(results["test"]["loss"] / 0.6931472)


def test_byte_lm_logs_the_rate_and_what_the_model_sows(tmp_path: Path, small_text: Path) -> None:
    run = tmp_path / "run"
    byte_lm.run(lm_config(run, small_text))
    rows = [row for row in xt.read_metrics(run) if row["set"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all({"learning_rate", "residual_rms_mean"} <= set(row["metrics"]) for row in rows)


def test_an_override_of_the_steps_shortens_the_schedule(tmp_path: Path, small_text: Path) -> None:
    config = lm_config(tmp_path, small_text)
    assert config.optimizer.scheduler.decay_steps == 6


def test_a_misspelt_override_names_the_nearest_key() -> None:
    with pytest.raises(xt.ConfigError, match="num_train_steps"):
        xt.parse_config(byte_lm.get_config(), ["--config.num_trian_steps=3"])


def test_digits_learn_and_are_evaluated_to_the_last_digit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "--config.num_epochs=3",
        "--config.trainer.check_val_every_n_epoch=1",
        f"--config.trainer.logger.log_path={run}",
    ]
    results = digits.run(xt.parse_config(digits.get_config(), arguments))
    assert results["test"]["accuracy"] > 0.8
    assert evaluate.evaluate(run) == results["test"]


def test_the_scripts_run_from_the_shell(tmp_path: Path, small_text: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "experiments/byte_lm.py", *SMALL_LM]
    command += [f"--config.trainer.logger.log_path={run}", f"--config.data.root={small_text}"]
    trained = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    for expected in ("val bits_per_byte: ", "test trigram bits_per_byte: ", "tokens per second"):
        assert expected in trained.stdout
    printed = re.search(r"python (experiments/evaluate\.py) (\S+)", trained.stdout)
    assert printed is not None
    evaluated = subprocess.run(
        [sys.executable, *printed.groups()],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    lines = [line for line in evaluated.stdout.splitlines() if line.startswith("test ")]
    assert len(lines) == 3
    assert all(line in trained.stdout.splitlines() for line in lines)

"""Does ``xtrainer plan`` say what a run will need, and end with the code that CI looks at?"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiment_zoo import SMALL, write_experiment

from xtrainer.cli import main

ROOT = Path(__file__).parents[2]
BYTE_LM = str(ROOT / "experiments" / "byte_lm.py")
BILLION = [
    f"--config.model.model_config.{name}={value}"
    for name, value in {
        "num_layers": 24,
        "embed_dim": 2048,
        "mlp_dim": 8192,
        "num_heads": 16,
        "context_length": 2048,
    }.items()
]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    """Returns what the command says in a process of its own, started in ``folder``."""
    command = [sys.executable, "-m", "xtrainer", "plan", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_an_experiment_is_planned_for_sixteen_devices_and_for_ci(tmp_path: Path) -> None:
    done = run(
        BYTE_LM,
        "--devices=16",
        "--config.data.batch_size=16",
        "--config.model.parallel.model_axis_size=2",
        "--config.model.model_config.num_layers=1",
        "--json=plan.json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for line in ("byte_lm.py on 16 × cpu", "mesh   dp=8, fsdp=1, pp=1, tp=2", "The plan holds."):
        assert line in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert plan["holds"] and plan["num_devices"] == 16
    assert plan["train"]["memory"]["temporaries"] > 0
    assert any(one["kind"] == "all-reduce" for one in plan["train"]["collectives"])


def test_a_batch_that_does_not_divide_ends_with_one(tmp_path: Path) -> None:
    done = run(BYTE_LM, "--devices=16", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "The plan does not hold" in done.stdout
    assert "A batch of 8 rows does not divide over the 16 devices" in done.stdout


def test_a_billion_parameters_are_planned_in_seconds(capsys: pytest.CaptureFixture) -> None:
    start = time.perf_counter()
    code = main(["plan", BYTE_LM, "--devices=8", "--no-compile", *BILLION])
    assert time.perf_counter() - start < 60  # five seconds where nothing else runs
    said = capsys.readouterr().out
    assert code == 0
    assert "1,209,214,976 parameters" in said and "not compiled" in said


def test_all_mistakes_of_the_settings_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = SMALL.replace('"batch_size": 16}', '"batch_size": 16}, "optimizer": {"nmae": 1}')
    text = text.replace('        "optimizer": xt.OptimizerConfig(),\n', "")
    json_file = tmp_path / "plan.json"
    arguments = ["--config.trainer.seed=-1", "--config.trianer.seed=1", f"--json={json_file}"]
    assert main(["plan", write_experiment(tmp_path, text), "--devices=8", *arguments]) == 1
    said = capsys.readouterr().out
    assert "There is no --config.trianer.seed" in said
    assert "config.optimizer.nmae: OptimizerConfig has no such field" in said
    assert "trainer.seed: found -1" in said
    assert len(json.loads(json_file.read_text(encoding="utf-8"))["problems"]) == 3


def test_a_document_for_a_program_is_all_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_experiment(tmp_path, SMALL.replace("def make", "print('hello')\n\n\ndef make"))
    assert main(["plan", path, "--devices=8", "--no-compile", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_devices"] == 8
    assert main(["plan", path, "--devices=8", "--json", "--config.nothing=1"]) == 1
    assert json.loads(capsys.readouterr().out)["holds"] is False


def test_more_memory_than_the_limit_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["plan", write_experiment(tmp_path), "--devices=8", "--no-compile"]
    assert main([*arguments, "--memory-limit=1MiB"]) == 0
    assert main([*arguments, "--memory-limit=1KiB"]) == 1
    assert "more than the limit of 1,024" in " ".join(capsys.readouterr().out.split())


def test_a_mesh_that_does_not_fit_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fsdp = "--config.model.parallel.fsdp_axis_size=3"
    assert main(["plan", write_experiment(tmp_path), "--devices=8", fsdp]) == 1
    assert "do not fit 8 devices" in " ".join(capsys.readouterr().out.split())


def test_a_rule_that_does_not_divide_its_parameter_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parallel = 'fsdp_axis_size=8, param_rules=(("Dense_0/kernel", (None, "fsdp")),)'
    text = SMALL.replace("ModelConfig(", f"ModelConfig(parallel=xt.ParallelConfig({parallel}), ")
    assert main(["plan", write_experiment(tmp_path, text), "--devices=8", "--no-compile"]) == 1
    assert "dimension 1 of (64, 1) does not divide by 8" in " ".join(
        capsys.readouterr().out.split()
    )


def test_of_the_devices_that_jax_has_started_with_the_first_ones_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["plan", write_experiment(tmp_path), "--no-compile"]
    assert main([*arguments, "--devices=4"]) == 0
    assert "on 4 × cpu" in capsys.readouterr().out
    assert main([*arguments, "--devices=64"]) == 2
    assert "8 CPU devices that JAX has started with" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "missing" / "plan.json"
    arguments = [write_experiment(tmp_path), "--devices=8", "--no-compile", f"--json={file}"]
    assert main(["plan", *arguments]) == 2
    assert "a folder that exists" in capsys.readouterr().err


def test_a_topology_without_its_compiler_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["plan", write_experiment(tmp_path), "--target=v5e:2x4"]) == 2
    assert 'pip install "xtrainer[tpu]"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_tpu_that_is_not_there_is_planned_for(tmp_path: Path) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail(
            "Found no libtpu, expected the TPU compiler that this test was asked to run with. "
            'Run: pip install "xtrainer[tpu]"'
        )
    done = run(
        BYTE_LM, "--target=v5e:2x4", "--memory-limit=16GiB", "--json=plan.json", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "byte_lm.py on 8 × TPU v5 lite (v5e:2x4)" in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert plan["platform"] == "tpu" and plan["train"]["memory"]["code"] > 0
    done = run(BYTE_LM, "--target=v5e:3x3", folder=tmp_path)
    assert done.returncode == 2 and "found 'v5e:3x3'" in done.stderr


def test_settings_that_nothing_reads_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = '"data": {"batch_size": 16'
    text = SMALL.replace(data, f'{data}, "shuffel": True, "shuffle": True')
    text += "\n\ndef make_loaders(data):\n    return data.shuffle\n"
    assert main(["plan", write_experiment(tmp_path, text), "--no-compile"]) == 0
    said = capsys.readouterr().out
    assert "config.data.shuffel: nothing reads it" in said
    assert said.count("nothing reads it") == 1

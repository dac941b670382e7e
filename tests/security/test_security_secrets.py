"""Does a secret that got into a config or the environment stay out of all that a run writes?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xtrainer as xt
from xtrainer.checkpoint import read_meta

ROOT = Path(__file__).parents[2]
CANARIES = [f"canary{number}bird" for number in range(9)]
PROGRAM = """
import logging, sys
from pathlib import Path
import optax, zoo
import xtrainer as xt

logging.basicConfig(level=logging.DEBUG)
folder, (c0, c1, c2, c3, c4, c5, c6) = Path(sys.argv[1]), sys.argv[2:9]

def remote_sgd(learning_rate, source):
    assert source in (f"https://me:{c2}@host/?api_key={c3}", "https://***@host/?api_key=***")
    return optax.sgd(learning_rate)

optax.remote_sgd = remote_sgd

class Remote(zoo.MLP):
    hub: dict | None = None
    hf_token: str = ""

class Trainer(zoo.Classifier):
    model_class = Remote

def make():
    return Trainer(
        xt.TrainerConfig(
            enable_progress_bar=False,
            logger=xt.LoggerConfig(
                log_path=str(folder),
                log_tools=[
                    xt.FileLoggerConfig(),
                    xt.TensorBoardLoggerConfig(),
                    xt.WandBLoggerConfig(mode="offline", name=f"ftp://{c5}@host"),
                ],
            ),
            callbacks=[xt.ModelCheckpointConfig()],
        ),
        xt.ModelConfig(model_config={"hf_token": c0, "hub": {"login": {"password": c1}}}),
        xt.OptimizerConfig(
            name="optax.remote_sgd",
            scheduler=xt.SchedulerConfig(lr=0.1),
            kwargs={"source": f"https://me:{c2}@host/?api_key={c3}"},
        ),
        zoo.classification_data(16),
    )

make().train_model(zoo.loader(), num_epochs=1)
resumed = make()
resumed.train_model(zoo.loader(), num_epochs=2, resume="must")
assert resumed.global_step == 8
loaded = Trainer.load_from_checkpoint(folder, exmp_input=zoo.classification_data(16))
assert loaded.global_step == 8 and loaded.model.hf_token == "***"
try:
    xt.Config.from_dict(xt.TrainerConfig, {"callbacks": [{"api_key": c6}], "seed": f"a://{c6}@b"})
except xt.ConfigError as error:
    logging.exception("refused")
raise xt.XTrainerError("the end")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs the program; returns its folder and all that it said."""
    folder = tmp_path_factory.mktemp("secrets") / "run"
    secrets = {"WANDB_API_KEY": CANARIES[7] * 4, "XT_PASSWORD": CANARIES[8]}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *CANARIES[:7]],
        env=os.environ | secrets | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = done.stdout + done.stderr
    assert "XTrainerError: the end" in said, said[-3000:]
    return folder, said


def test_no_file_of_the_run_holds_a_secret(ran: tuple[Path, str]) -> None:
    files = [path for path in ran[0].parent.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.json", "metrics.jsonl", "meta.json", "COMMIT.json"} <= names
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert [c for c in CANARIES if c.encode() in content or c in str(path)] == [], path


def test_nothing_that_was_said_holds_a_secret(ran: tuple[Path, str]) -> None:
    assert "refused" in ran[1]
    assert [canary for canary in CANARIES if canary in ran[1]] == []


def test_the_places_of_secrets_are_written_without_them(ran: tuple[Path, str]) -> None:
    saved = json.loads((ran[0] / "config.json").read_text())
    assert saved["model"]["model_config"]["hf_token"] == "***"
    assert saved["model"]["model_config"]["hub"] == {"login": {"password": "***"}}
    assert saved["optimizer"]["kwargs"]["source"] == "https://***@host/?api_key=***"
    assert read_meta(ran[0] / "checkpoints" / "8")["config"] == saved


def test_no_config_has_a_field_for_a_secret() -> None:
    from dataclasses import fields

    from xtrainer.config.base import config_classes
    from xtrainer.config.redact import is_secret

    found = [
        f"{name}.{field.name}"
        for name, config in config_classes().items()
        if config.__module__.startswith("xtrainer.")
        for field in fields(config)
        if is_secret(field.name)
    ]
    assert xt.WandBLoggerConfig.__name__ in config_classes()
    assert found == []

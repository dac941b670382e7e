"""Does ``import xtrainer`` leave the machine and the optional packages alone?"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIONAL = [
    "grain",
    "matplotlib",
    "mlflow",
    "optuna",
    "plotly",
    "ray",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "torch",
    "wandb",
]
# What these change in the environment is not ours.
OTHERS = "import flax, jax, ml_collections, optax, orbax.checkpoint, rich, tqdm"
PROBE = """
import json, os, sys
{others}
before = dict(os.environ)
{statement}
loaded = [name for name in {optional} if name in sys.modules]
bridge = sys.modules.get("jax._src.xla_bridge")
print(json.dumps([loaded, sorted(bridge._backends) if bridge else [], os.environ != before]))
"""


def probe(statement: str) -> list:
    """Returns the optional packages loaded, the backends started, and any change of settings."""
    code = PROBE.format(statement=statement, optional=OPTIONAL, others=OTHERS)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_importing_loads_no_optional_package_and_starts_no_backend() -> None:
    assert probe("import xtrainer; xtrainer.TrainerModule") == [[], [], False]


def test_the_probe_sees_a_package_a_backend_and_a_setting() -> None:
    statement = (
        "import jax; jax.devices(); sys.modules['wandb'] = sys; os.environ['XTRAINER_TEST'] = '1'"
    )
    assert probe(statement) == [["wandb"], ["cpu"], True]

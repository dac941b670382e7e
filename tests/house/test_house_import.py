"""Does ``import xtrainer`` leave the machine and the optional packages alone?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
# What our import may bring beyond JAX, Flax and Optax: small modules of JAX and Python.
ALLOWED = {"xtrainer", "jax.experimental.mesh_utils", "multiprocessing", "shlex", "__mp_main__"}
ALLOWED |= {"queue", "_queue", "concurrent.futures.thread"}
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


def extra_modules(statement: str) -> list[str]:
    """Returns what a statement loads beyond JAX, Flax, Optax and the allowed modules."""
    code = f"import json, sys, flax, jax, optax; before = set(sys.modules)\n{statement}\n"
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout.splitlines()[-1])
    return [n for n in loaded if n not in ALLOWED and n.split(".")[0] not in ALLOWED]


ALL = "import xtrainer; [getattr(xtrainer, name) for name in xtrainer.__all__]"


@pytest.mark.parametrize("statement", ["import xtrainer", ALL])
def test_importing_loads_little_beyond_jax_flax_and_optax(statement: str) -> None:
    assert extra_modules(statement) == []


def test_importing_alone_loads_nothing_until_a_name_is_used() -> None:
    code = """
import sys, xtrainer
print([name for name in sys.modules if name in ("jax", "flax") or name.startswith("xtrainer.")])
xtrainer.TrainerConfig
print("xtrainer.trainer" in sys.modules, set(xtrainer.__all__) <= set(dir(xtrainer)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.splitlines() == ["[]", "True True"], result.stderr


def test_a_module_that_is_loaded_in_vain_is_found() -> None:
    found = extra_modules("import xtrainer, tqdm, absl.app, ml_collections")
    assert {"tqdm", "absl.app", "ml_collections"} <= set(found)


def test_the_probe_sees_a_package_a_backend_and_a_setting() -> None:
    statement = (
        "import jax; jax.devices(); sys.modules['wandb'] = sys; os.environ['XTRAINER_TEST'] = '1'"
    )
    assert probe(statement) == [["wandb"], ["cpu"], True]

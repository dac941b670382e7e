"""Is anything used that runs code from a file, hides a mistake, or is gone from JAX tomorrow?"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "xtrainer").rglob("*.py"))
FORBIDDEN = {
    "pickle": "runs code from a file",
    "cloudpickle": "runs code from a file",
    "dill": "runs code from a file",
    "marshal": "runs code from a file",
    "shelve": "runs code from a file",
    "joblib": "runs code from a file",
    "torch.load": "runs code from a file",
    "jax.experimental.serialize_executable": "runs code from a file",
    "runpy": "runs code from a file",
    "yaml.Loader": "runs code from a file; use yaml.SafeLoader",
    "yaml.load": "runs code from a file; use yaml.safe_load",
    "yaml.unsafe_load": "runs code from a file; use yaml.safe_load",
    "yaml.full_load": "runs code from a file; use yaml.safe_load",
    "eval": "runs code from a text",
    "exec": "runs code from a text",
    "compile": "makes code of a text",
    "os.system": "runs a text in a shell; use subprocess.run with a list",
    "os.popen": "runs a text in a shell; use subprocess.run with a list",
    "subprocess.getoutput": "runs a text in a shell; use subprocess.run with a list",
    "subprocess.getstatusoutput": "runs a text in a shell; use subprocess.run with a list",
    "__import__": "imports what a text names",
    "importlib": "imports what a text names; use errors.require",
    "jax.core": "is private in coming versions of JAX",
    "jax.interpreters": "is private in coming versions of JAX",
    "jax.experimental.shard_map": "has moved to jax.shard_map",
    "jax.numpy.empty": "is jnp.zeros under another name",
    "optax.global_norm": "is deprecated; use optax.tree.norm",
}
# What imports or finds modules by their names, and why each of these does.
IMPORTERS = {
    "xtrainer/errors.py": "optional packages, whose names stand in the program",
    "xtrainer/cli/experiment.py": "the experiment that the command line names",
    "xtrainer/registry.py": "the folder that the program itself names",
}
READS_ONLY = ("importlib.metadata", "importlib.util.find_spec")
MUTABLE_CALLS = {"list", "dict", "set", "defaultdict", "OrderedDict", "Counter", "deque"}
SETTINGS = ("os.environ", "os.putenv", "jax.config.update")


def aliases(tree: ast.AST) -> dict[str, str]:
    """Returns what each imported name stands for, with its full dotted path."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def within(name: str, word: str) -> bool:
    return name == word or name.startswith(word + ".")


def used_names(tree: ast.AST, names: dict[str, str]) -> set[str]:
    found = {dotted(node, names) for node in ast.walk(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found | set(names.values())


def word_faults(name: str, source: str) -> list[str]:
    """Returns a sentence for each forbidden thing in a source."""
    tree = ast.parse(source)
    names = aliases(tree)
    faults = []
    for used in sorted(used_names(tree, names)):
        for word, reason in FORBIDDEN.items():
            allowed = word == "importlib" and (name in IMPORTERS or reads_only(used))
            if within(used, word) and not allowed:
                faults.append(f"{name}: {used} {reason}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            faults.append(f"{name}:{node.lineno}: assert vanishes under -O; raise an error")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                faults.append(f"{name}: allow_pickle runs code from a file")
        if isinstance(node, ast.keyword) and node.arg == "shell":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                faults.append(f"{name}: shell runs a text in a shell; use a list")
        if isinstance(node, ast.ClassDef):
            faults += mutable_defaults(name, node)
    return faults + settings_at_import(name, tree, names)


def reads_only(used: str) -> bool:
    """Says whether something of importlib tells about modules and imports none."""
    parts = used.split(".")
    return any(within(used, word) or word.split(".")[: len(parts)] == parts for word in READS_ONLY)


def mutable_defaults(name: str, owner: ast.ClassDef) -> list[str]:
    faults = []
    for node in owner.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        value = node.value
        call = isinstance(value, ast.Call) and dotted(value.func, {}).split(".")[-1]
        display = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
        if display or call in MUTABLE_CALLS:
            faults.append(f"{name}:{node.lineno}: {owner.name} shares a mutable value")
    return faults


def settings_at_import(name: str, tree: ast.Module, names: dict[str, str]) -> list[str]:
    """Returns a sentence for each change of the process's settings outside functions."""
    faults, waiting = [], list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        writes = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
        target = node.value if writes else node.func if isinstance(node, ast.Call) else None
        used = dotted(target, names) if target is not None else ""
        reads = used in ("os.environ.get", "os.environ.items", "os.environ.copy")
        if any(within(used, setting) for setting in SETTINGS) and not reads:
            faults.append(f"{name}: {used} changes a setting while importing")
        waiting += ast.iter_child_nodes(node)  # type: ignore[arg-type]
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_forbidden_is_used(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    assert word_faults(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle as cp",
        "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load as load",
        "eval('1')",
        "x = [exec]",
        "__import__(name)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.load(p, allow_pickle=flag)",
        "import joblib",
        "from runpy import run_path",
        "import torch\ntorch.load(path)",
        "from jax.experimental.serialize_executable import deserialize_and_load",
        "import os\nos.system(text)",
        "from os import popen",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import subprocess\nsubprocess.getoutput(text)",
        "compile(text, 'a', 'exec')",
        "import importlib.util\nimportlib.util.spec_from_file_location(name, path)",
        "import importlib\nimportlib.reload(module)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import jax\njax.core.Tracer",
        "import jax.core",
        "from jax.core import Tracer",
        "from jax.interpreters import partial_eval",
        "import jax.numpy as jnp\njnp.empty((2,))",
        "from jax.numpy import empty",
        "from jax.experimental.shard_map import shard_map",
        "from jax.experimental import shard_map",
        "import optax\nnorm = optax.global_norm(tree)",
        "assert x, 'user mistake'",
        "class AConfig:\n    callbacks: list = []",
        "class A:\n    seen = dict()",
        "import os\nos.environ['A'] = '1'",
        "import os\nif True:\n    os.environ.setdefault('A', '1')",
        "import jax\njax.config.update('jax_enable_x64', True)",
    ],
)
def test_a_forbidden_thing_is_found(source: str) -> None:
    assert word_faults("xtrainer/step/planted.py", source)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import importlib.metadata\nimportlib.metadata.version('jax')",
        "from importlib.util import find_spec",
        "import subprocess\nsubprocess.run(['a'], shell=False)",
        "step.lower().compile()",
        "import jax.numpy as jnp\njnp.empty_like",
        "model.eval()\nself.executor.exec_later()",
        "import optax\noptax.tree.norm",
        "import os\nhome = os.environ.get('HOME')\nuser = os.environ['USER']",
        "import os\ndef f():\n    os.environ['A'] = '1'",
        "from dataclasses import field\nclass A:\n    b: list = field(default_factory=list)",
        "class A:\n    b: tuple = ()",
        "from jax import shard_map",
    ],
)
def test_what_only_looks_forbidden_is_fine(source: str) -> None:
    assert word_faults("xtrainer/step/planted.py", source) == []


@pytest.mark.parametrize("name", IMPORTERS)
def test_only_three_files_may_import_by_name(name: str) -> None:
    source = "import importlib\nimportlib.import_module(name)"
    assert len(IMPORTERS) == 3 and word_faults(name, source) == []
    assert "importlib" in (ROOT / name).read_text(encoding="utf-8")

"""Does a folder of sources, or an installed package, fill the tables, by the program's own call?"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from xtrainer.errors import ConfigError
from xtrainer.registry import Registry, import_folder, models

MODEL = """
from xtrainer.registry import register_model

@register_model({name!r})
class Net: ...
"""
Write = Callable[[Mapping[str, str]], Path]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets what a test has imported and registered."""
    monkeypatch.setattr(models, "_entries", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def net(name: str) -> str:
    return MODEL.format(name=name)


def test_every_file_below_a_folder_is_imported_and_registers_its_models(write: Write) -> None:
    files = ["mlp.py", "vision/cnn.py", "text/__init__.py", "text/lm.py"]
    root = write({file: net(file.removesuffix(".py").replace("/", ".")) for file in files})
    names = import_folder(root, "planted_models")
    assert names == (
        "planted_models.mlp",
        "planted_models.text",
        "planted_models.text.lm",
        "planted_models.vision.cnn",
    )
    assert list(models) == ["mlp", "text.__init__", "text.lm", "vision.cnn"]
    assert models.get("vision.cnn") is sys.modules["planted_models.vision.cnn"].Net


def test_a_folder_without_a_prefix_is_a_place_of_modules(write: Write) -> None:
    root = write({"planted_a.py": "import planted_b", "planted_b.py": net("b")})
    assert import_folder(root) == ("planted_a", "planted_b")
    assert sys.path[-1] == str(root) and list(models) == ["b"]


def test_files_of_a_package_see_each_other(write: Write) -> None:
    root = write(
        {
            "__init__.py": "WIDTH = 8",
            "a.py": "from . import WIDTH\nfrom .sub.b import DEPTH",
            "sub/b.py": "from .. import WIDTH\nDEPTH = WIDTH + 1",
        }
    )
    names = import_folder(root, "planted_package")
    assert names == ("planted_package", "planted_package.a", "planted_package.sub.b")
    assert sys.modules["planted_package.a"].DEPTH == 9


def test_hidden_files_are_passed_over(write: Write) -> None:
    bad = "raise RuntimeError('ran')"
    hidden = ["_a.py", ".b.py", "_c/d.py", ".git/e.py", "__main__.py", "notes.txt"]
    root = write({**dict.fromkeys(hidden, bad), "fine.py": ""})
    assert import_folder(root, "planted_hidden") == ("planted_hidden.fine",)


def test_a_module_that_is_imported_already_is_not_run_again(write: Write) -> None:
    root = write({"a.py": "RUNS = []", "b.py": "from planted_once import a\na.RUNS.append(1)"})
    assert import_folder(root, "planted_once") == import_folder(root, "planted_once")
    assert sys.modules["planted_once.a"].RUNS == [1]


def test_a_package_may_import_its_own_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    call = (
        "from xtrainer.registry import import_folder\nNAMES = import_folder(__path__[0], __name__)"
    )
    root = write({"planted_self/__init__.py": call, "planted_self/a.py": net("a")})
    monkeypatch.syspath_prepend(root)
    import planted_self  # type: ignore[import-not-found]

    assert planted_self.NAMES == ("planted_self", "planted_self.a") and list(models) == ["a"]


def test_the_script_that_is_running_is_passed_over(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write({"script.py": "raise RuntimeError('ran twice')", "a.py": ""})
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(root / "script.py"), raising=False)
    assert import_folder(root, "planted_script") == ("planted_script.a",)


@pytest.mark.parametrize("prefix", ["", "planted_broken"])
def test_a_file_that_fails_is_named_with_its_error(write: Write, prefix: str) -> None:
    root = write({"planted_bad.py": "1 / 0"})
    with pytest.raises(ConfigError, match=r"planted_bad.py cannot .*ZeroDivisionError: division"):
        import_folder(root, prefix)


def test_a_package_that_fails_is_named_and_is_not_left_behind(write: Write) -> None:
    root = write({"__init__.py": "import planted_nothing"})
    with pytest.raises(ConfigError, match=r"__init__.py cannot .*No module named 'planted_noth"):
        import_folder(root, "planted_failing")
    assert "planted_failing" not in sys.modules


@pytest.mark.parametrize("prefix", ["json", "math", "xtrainer.loop", "numpy"])
def test_a_prefix_that_another_package_has_is_refused(write: Write, prefix: str) -> None:
    root = write({"a.py": "raise RuntimeError('ran')"})
    with pytest.raises(ConfigError, match=f"import_prefix: found '{prefix}', which stands for"):
        import_folder(root, prefix)


def test_a_file_named_like_another_module_is_not_run_in_its_place(write: Write) -> None:
    import json

    root = write({"json.py": "raise RuntimeError('ran')"})
    with pytest.raises(ConfigError, match=r"json.py cannot be imported as 'json', which stands"):
        import_folder(root)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("file", "prefix", "message"),
    [
        ("a.py", "two words", "expected the name of a package, as in an import"),
        ("a.py", "planted_nowhere.models", "which has no package to be in"),
        ("my-net.py", "planted_names", "my-net.py cannot be imported as 'planted_names.my-net'"),
    ],
)
def test_a_name_that_python_has_not_is_refused(
    write: Write, file: str, prefix: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_folder(write({file: ""}), prefix)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="src_root: found .*nowhere', expected a folder"):
        import_folder(tmp_path / "nowhere")


def offer(write: Write, monkeypatch: pytest.MonkeyPatch, points: str, **files: str) -> None:
    """Installs a package that offers entry points."""
    info = "planted_plugin-1.0.dist-info"
    root = write(
        {
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: planted-plugin\nVersion: 1.0\n",
            f"{info}/entry_points.txt": points,
            **{f"{name}.py": text for name, text in files.items()},
        }
    )
    monkeypatch.syspath_prepend(root)


def test_models_of_installed_packages_are_filed_when_asked_for(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = (
        "[xtrainer.models]\ntiny = planted_tiny:Tiny\nall = planted_own\n[other]\nx = nowhere\n"
    )
    offer(write, monkeypatch, points, planted_tiny="class Tiny: ...", planted_own=net("own"))
    assert list(models) == [] and "planted_tiny" not in sys.modules
    assert models.load_entry_points() == ("own", "tiny")
    assert models.get("tiny") is sys.modules["planted_tiny"].Tiny
    assert models.load_entry_points() == ()


def test_a_broken_entry_point_is_named_with_its_package_and_stops_no_other(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"a": "planted_gone:A", "square": "planted_two:Other"}
    names |= dict.fromkeys(("round.z", "z"), "planted_two:Z")
    points = "\n".join(["[shapes]", *(f"{name} = {value}" for name, value in names.items())])
    offer(write, monkeypatch, points, planted_two="class Other: ...\nclass Z: ...")
    registry: Registry = Registry("shape", reserved="round.")
    registry.register("square")(int)
    with pytest.raises(ConfigError) as caught:
        registry.load_entry_points("shapes")
    gone, reserved, taken = sorted(caught.value.problems)
    assert "names that begin with 'round.' stand for functions of that package" in reserved
    assert gone.startswith(
        "The entry point 'a' (planted_gone:A) of 'planted-plugin' cannot be used"
    )
    assert "No module named 'planted_gone'" in gone and "already stands for int" in taken
    assert list(registry) == ["square", "z"] and registry.get("square") is int

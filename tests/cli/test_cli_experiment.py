"""Is an experiment file run as the user meant it, and are all its mistakes told?"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from experiment_zoo import SMALL, write_experiment
from ml_collections import ConfigDict

from xtrainer.cli.experiment import UsageError, config_problems, load_experiment


@pytest.fixture(autouse=True)
def path_of_python() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in ("small_experiment", "classes_of_an_experiment", "json"):
        sys.modules.pop(f"xtrainer_experiment_{name}", None)
    sys.modules.pop("small_experiment", None)
    sys.modules.pop("classes_of_an_experiment", None)


def test_a_file_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_small.py").write_text("STEPS = 7\n", encoding="utf-8")
    text = SMALL.replace("import jax\n", "import jax\nfrom neighbour_of_small import STEPS\n")
    experiment = load_experiment(write_experiment(tmp_path, text.replace(": 2,", ": STEPS,")))
    assert experiment.get_config().num_epochs == 7


def test_its_classes_can_be_imported_by_processes_of_a_loader(tmp_path: Path) -> None:
    path = tmp_path / "classes_of_an_experiment.py"
    path.write_text(SMALL, encoding="utf-8")
    made = load_experiment(path).make_trainer
    code = f"from {made.__module__} import Regression; print(Regression.__name__)"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "Regression\n"


def test_a_module_of_the_same_name_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(SMALL, encoding="utf-8")
    before = sys.modules["json"]
    assert load_experiment(path).make_trainer.__module__ == "xtrainer_experiment_json"
    assert sys.modules["json"] is before


def test_its_main_part_does_not_run(tmp_path: Path) -> None:
    load_experiment(write_experiment(tmp_path, SMALL + "\nif __name__ == '__main__':\n    1 / 0\n"))


def test_annotations_of_its_classes_can_be_read(tmp_path: Path) -> None:
    extra = (
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Sizes(xt.Config):\n    widths: 'list[int]'\n\n\n"
        "SIZES = xt.Config.from_dict(Sizes, {'widths': [1]})\n"
    )
    experiment = load_experiment(write_experiment(tmp_path, SMALL + extra))
    assert experiment.get_config.__globals__["SIZES"].to_dict()["widths"] == [1]


def test_a_file_without_a_function_is_told_what_to_add(tmp_path: Path) -> None:
    text = SMALL.replace("def make_trainer(", "def build(")
    with pytest.raises(UsageError, match=r"no function make_trainer\. Add make_trainer\(config"):
        load_experiment(write_experiment(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "x = 1\nimport nowhere_at_all\n",
            "line 2, in <module>\n    import nowhere_at_all\nModule",
        ),
        ("def f(:\n", "line 1\n    def f(:\n          ^\nSyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_without_our_own_lines(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write_experiment(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_experiment(path)
    assert str(error.value).startswith(f'{path} cannot be run:\n  File "{path}", {said}')


def test_what_is_no_python_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    for name in ("notes.txt", "missing.py", "."):
        with pytest.raises(UsageError, match="Found no Python file"):
            load_experiment(tmp_path / name)


def test_every_mistake_of_every_section_is_told() -> None:
    config = ConfigDict(
        {
            "trainer": {"seed": -1, "logger": {"log_evry_n_steps": 3}},
            "model": {"parallel": {"fsdp_axis_size": "two"}},
            "optimizer": {"name": "adanw"},
        }
    )
    key, size, name = config_problems(config)
    assert key.startswith("config.trainer.logger.log_evry_n_steps: LoggerConfig has no such field")
    assert "'log_every_n_steps'" in key
    assert size.startswith("config.model.parallel.fsdp_axis_size: found 'two'")
    assert name.startswith("config.optimizer.name: ") and "adamw" in name


def test_the_section_that_the_mesh_is_built_from_must_be_there() -> None:
    assert "config.model: found no such section" in config_problems(ConfigDict({"trainer": {}}))[0]

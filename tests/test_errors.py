"""Do the errors teach, and can they be caught as what they are?"""

import pickle
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xtrainer import errors
from xtrainer.errors import (
    ConfigError,
    MetricError,
    MissingDependencyError,
    did_you_mean,
    readable,
    require,
    teach,
)


def test_one_problem_is_the_message() -> None:
    assert str(ConfigError("a: found 1, expected 2.")) == "a: found 1, expected 2."


def test_several_problems_are_listed_and_kept() -> None:
    error = ConfigError(["a: wrong.", "b: wrong."])
    assert str(error) == "2 mistakes in the configuration:\n  - a: wrong.\n  - b: wrong."
    assert error.problems == ("a: wrong.", "b: wrong.")


def test_the_nearest_name_is_given_with_all_names() -> None:
    assert did_you_mean("leses", ["loss", "lenses"]) == (
        "Did you mean 'lenses'? Known names: lenses, loss."
    )


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["loss"]) == "Known names: loss."
    assert did_you_mean("zzz", []) == "Known names: (none)."


def test_require_gives_the_module() -> None:
    assert require("json", "wandb").dumps([]) == "[]"


def test_require_says_how_to_install_what_is_missing() -> None:
    with pytest.raises(MissingDependencyError, match=r'pip install "xtrainer\[wandb\]"'):
        require("no_such_package_anywhere", "wandb")


def test_a_metric_error_reads_as_a_sentence() -> None:
    assert str(MetricError("No metric 'a'.")) == "No metric 'a'."


ALL = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.XTrainerError)
]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_documented_and_survives_another_process(error: type[Exception]) -> None:
    assert error.__doc__
    copy = pickle.loads(pickle.dumps(error("found 1, expected 2.")))
    assert (type(copy), str(copy)) == (error, "found 1, expected 2.")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.CheckpointNotFoundError, FileNotFoundError),
        (errors.MetricError, KeyError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_errors_are_also_what_python_users_expect(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)


def failing(name: str, error: Exception, within: Callable[[], Any] | None = None) -> Any:
    """Returns a function of a module that calls another one, or raises."""

    def fail() -> None:
        if within is not None:
            within()
        raise error

    return types.FunctionType(fail.__code__, {"__name__": name}, "fail", None, fail.__closure__)


def modules_shown(call: Callable[[], Any]) -> list[str]:
    """Returns the modules of the frames below this one that an error of a call shows."""
    with pytest.raises(Exception) as caught:
        readable(call)()
    frames = traceback.walk_tb(caught.value.__traceback__)
    return [frame.f_globals["__name__"] for frame, _ in frames if frame.f_code.co_name == "fail"]


def test_a_deliberate_error_shows_the_callers_frames_alone() -> None:
    library = failing("jax._src.x", ConfigError("wrong"))
    mine = failing("mine", ConfigError("wrong"), library)
    assert modules_shown(failing("xtrainer.x", ConfigError("wrong"), mine)) == ["mine"]


def test_an_error_of_the_callers_code_shows_the_callers_frames_alone() -> None:
    mine = failing("mine", KeyError("mine"), failing("flax.x", KeyError("mine")))
    assert modules_shown(failing("xtrainer.x", KeyError("mine"), mine)) == ["mine"]


def test_a_fault_of_xtrainer_shows_all_frames() -> None:
    fault = failing("xtrainer.y", KeyError("fault"), failing("jax.x", KeyError("fault")))
    mine = failing("mine", KeyError("fault"), fault)
    assert modules_shown(mine) == ["mine", "xtrainer.y", "jax.x"]


def test_an_error_that_is_explained_counts_as_deliberate() -> None:
    error = KeyError("found")
    teach(error, "Do this.", "", "And that.")
    teach(error, "Once is enough.")
    assert error.__notes__ == ["Do this. And that."]
    assert modules_shown(failing("xtrainer.y", error)) == []


def cause_shown(module: str) -> BaseException | None:
    """Returns the cause that is shown of an error, where that was raised in a module."""

    @readable
    def refuse() -> None:
        try:
            failing(module, KeyError("first"))()
        except KeyError as error:
            raise ConfigError("second") from error

    renamed = types.FunctionType(
        refuse.__wrapped__.__code__,  # type: ignore[attr-defined]
        {"__name__": "xtrainer.x", **{k: globals()[k] for k in ("failing", "ConfigError")}},
        "refuse",
        None,
        refuse.__wrapped__.__closure__,  # type: ignore[attr-defined]
    )
    with pytest.raises(ConfigError) as caught:
        readable(renamed)()
    error = caught.value
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_cause_in_a_library_is_left_out_and_one_of_the_callers_is_kept() -> None:
    assert cause_shown("jax.x") is None
    assert isinstance(cause_shown("mine"), KeyError)


def test_an_extra_that_is_broken_inside_keeps_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        require("half_installed", "wandb")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package_anywhere", "wandb")
    assert caught.value.__cause__ is None

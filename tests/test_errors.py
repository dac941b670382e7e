"""Do the errors teach, and can they be caught as what they are?"""

import pickle

import pytest

from xtrainer import errors
from xtrainer.errors import ConfigError, MetricError, MissingDependencyError, did_you_mean, require


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

"""Do names stand for exactly one object?"""

import pytest

from xtrainer.errors import ConfigError
from xtrainer.registry import Registry, models, register_model


@pytest.fixture
def registry() -> Registry:
    registry: Registry = Registry("shape")
    registry.register("square")(int)
    return registry


def test_a_name_gives_its_object(registry: Registry) -> None:
    assert registry.get("square") is int


def test_an_unknown_name_is_an_error_with_the_nearest(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="No shape is registered as 'sqare'. Did you mean 'sq"):
        registry.get("sqare")


def test_a_name_cannot_stand_for_two_objects(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="already stands for int; str needs another name"):
        registry.register("square")(str)
    assert registry.get("square") is int


def test_the_same_definition_run_again_replaces_the_old_one() -> None:
    registry: Registry = Registry("cell")

    def run_cell() -> type:
        @registry.register("mlp")
        class MLP: ...

        return MLP

    first, second = run_cell(), run_cell()
    assert registry.get("mlp") is second is not first


def test_the_name_of_an_object_is_found(registry: Registry) -> None:
    assert registry.name_of(int) == "square"
    assert registry.name_of(str) is None


def test_objects_that_compare_by_array_are_no_obstacle(registry: Registry) -> None:
    import numpy as np

    assert registry.name_of(np.zeros(3)) is None


def test_names_are_listed_in_order(registry: Registry) -> None:
    registry.register("circle")(str)
    assert list(registry) == ["circle", "square"]
    assert "circle" in registry
    assert repr(registry) == "Registry('shape': circle = builtins.str, square = builtins.int)"


def test_register_model_files_the_class_and_returns_it() -> None:
    @register_model("test_registry_model")
    class Model: ...

    assert isinstance(Model, type)
    assert models.get("test_registry_model") is Model


def test_many_names_are_shown_one_a_line_with_what_they_stand_for(registry: Registry) -> None:
    for number in range(3):
        registry.register(f"net{number}")(Registry)
    assert repr(registry).splitlines() == [
        "Registry('shape':",
        "  net0 = xtrainer.registry.Registry",
        "  net1 = xtrainer.registry.Registry",
        "  net2 = xtrainer.registry.Registry",
        "  square = builtins.int",
        ")",
    ]


def test_an_empty_table_says_so() -> None:
    assert repr(Registry("shape")) == "Registry('shape': empty)"

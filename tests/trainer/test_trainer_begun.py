"""The state is made while the steps are traced, and it is there when the constructor ends."""

from typing import Any

import jax
import probes
import pytest
import zoo

from xtrainer.state import TrainState
from xtrainer.trainer.assemble import BegunState


class Watching(probes.Traced):
    """Notes what is carried while the steps are made."""

    def create_jitted_functions(self) -> None:
        self.carried_then = self.carried
        super().create_jitted_functions()
        self.carried_after = self.carried


def make(**options: Any) -> Any:
    options = {"trainer_class": Watching, "batch": probes.one(0), "mesh": zoo.devices(1), **options}
    return zoo.make_trainer(**options)


def test_the_steps_are_traced_for_the_shapes_of_a_state_under_way() -> None:
    made = make()
    assert isinstance(made.carried_then, BegunState)
    assert made.carried_after is made.carried_then  # nobody has waited for it
    assert isinstance(made.carried, TrainState)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), made.carried_then.shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), made.state) == shapes


def test_an_error_while_the_state_is_compiled_is_raised_by_the_constructor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Any, compiler_options: Any = None) -> Any:
        raise MemoryError("planted")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(MemoryError, match="planted"):
        make()

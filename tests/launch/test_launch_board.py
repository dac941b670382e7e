"""Do processes read each other's newest words, without waiting for any?"""

from typing import Any

import jax
import pytest
from coordination_zoo import Service

from xtrainer.launch import board


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Three processes, of which each thread can be any."""
    found = Service(3)
    monkeypatch.setattr(board, "coordination_client", lambda: found)
    monkeypatch.setattr(board, "runtime_process", found.index)
    monkeypatch.setattr(board, "within", lambda seconds, call: call() or True)
    return found


def test_the_newest_words_of_each_are_read_by_all(service: Service) -> None:
    for index, value in ((0, {"a": 1}), (2, {"a": 5}), (2, {"a": 6})):
        service.as_process(index)
        board.put_up("pace", value)
    service.as_process(1)
    assert board.read_all("pace") == {0: {"a": 1}, 2: {"a": 6}}
    assert board.read_all("other") == {}


class Gone:
    """A service whose process has ended."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        raise jax.errors.JaxRuntimeError(f"UNAVAILABLE: {key}")

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        raise jax.errors.JaxRuntimeError(f"UNAVAILABLE: {prefix}")


@pytest.mark.parametrize("client", [None, Gone()])
def test_a_service_that_is_gone_is_no_error(
    client: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "coordination_client", lambda: client)
    board.put_up("pace", 1)
    assert board.read_all("pace") == {}
    assert capfd.readouterr().err == ""

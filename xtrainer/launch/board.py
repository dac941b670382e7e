"""What does each process let the others read at any time? Its newest words; nobody waits for any.

JAX's coordination service keeps one small text of each process by topic. Unlike an exchange, it
needs no other process to be there, and may be used from any thread.
"""

import contextlib
import json

import jax

from xtrainer.launch.exchange import coordination_client, runtime_process
from xtrainer.launch.waits import within
from xtrainer.types import JSON

_TOPICS = "xtrainer/board/"
_SERVICE_S = 2.0


def put_up(topic: str, value: JSON) -> None:
    """Puts up what this process says of a topic, in place of what it has said before.

    Args:
        topic: A name.
        value: JSON, small: those of all processes are read at once.
    """
    key, text = f"{_TOPICS}{topic}/{runtime_process()}", json.dumps(value)

    def put() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):  # it may be gone
            coordination_client().key_value_set(key, text, allow_overwrite=True)

    within(_SERVICE_S, put)


def read_all(topic: str) -> dict[int, JSON]:
    """Returns what processes say of a topic, by process; of those that have said anything.

    Args:
        topic: A name.
    """
    found: dict[int, JSON] = {}

    def read() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):
            for key, text in coordination_client().key_value_dir_get(f"{_TOPICS}{topic}/"):
                found[int(key.rpartition("/")[2])] = json.loads(text)

    return found if within(_SERVICE_S, read) else {}

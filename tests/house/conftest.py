"""The tests of this folder parse all of the source, which CPython 3.11 cannot do at any moment."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_garbage_is_collected() -> Iterator[None]:
    """Lets no finalizer run within ``ast.parse``.

    The traceback of one that fails is parsed as well, and then the outer call raises
    ``SystemError: AST constructor recursion depth mismatch``.
    """
    gc.disable()
    yield
    gc.enable()

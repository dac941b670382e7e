"""Which object does a name stand for? Names come from the user's own calls, never from a file."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from xtrainer.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of names, filled by the user's own code.

    Args:
        kind: What is registered, as it appears in messages (for example ``"model"``).

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... class Square: ...
        >>> shapes.get("square") is Square
        True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files its argument under ``name``.

        Raises:
            ConfigError: If the name already stands for another object. An object of the same
                qualified name (a module run twice, a notebook cell) replaces the old one.
        """

        def decorator(entry: T) -> T:
            old = self._entries.get(name)
            if old is not None and _qualified_name(old) != _qualified_name(entry):
                raise ConfigError(
                    f"The {self.kind} name {name!r} already stands for {_qualified_name(old)}; "
                    f"{_qualified_name(entry)} needs another name."
                )
            self._entries[name] = entry
            return entry

        return decorator

    def get(self, name: str) -> T:
        """Returns the object filed under ``name``.

        Raises:
            ConfigError: If nothing is; the message gives the nearest name.
        """
        if name not in self._entries:
            raise ConfigError(
                f"No {self.kind} is registered as {name!r}. {did_you_mean(name, self._entries)}"
            )
        return self._entries[name]

    def name_of(self, entry: object) -> str | None:
        """Returns the name an object is filed under, or None."""
        return next((name for name, known in self._entries.items() if known is entry), None)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self) or 'empty'})"


def _qualified_name(entry: object) -> str:
    # Not the module: a script imported under its own name was ``__main__`` before.
    return str(getattr(entry, "__qualname__", repr(entry)))


models: Registry[Callable[..., Any]] = Registry("model")


def register_model(name: str) -> Callable[[Any], Any]:
    """Files a model class under a name, so that a checkpoint's config can refer to it.

    Example:
        >>> import flax.linen as nn
        >>> @register_model("registry_doc_mlp")
        ... class MLP(nn.Module): ...
        >>> models.get("registry_doc_mlp") is MLP
        True
    """
    return models.register(name)

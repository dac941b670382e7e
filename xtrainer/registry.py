"""Which object does a name stand for? Names come from the user's own calls, never from a file.

Synopsis:
    @register_model("mlp")                       # a checkpoint's config may say "mlp" from now on
    class MLP(nn.Module): ...

    import_folder("my_project/models", "my_project.models")     # runs every @register_... in there
    models.load_entry_points()                   # those of installed packages
    safe_types()                                 # all that a name in a file may stand for
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from xtrainer.errors import ConfigError, did_you_mean

T = TypeVar("T")

OPTAX = "optax."
"""With what the names of Optax's own functions begin."""


class Registry(Generic[T]):
    """A table of names, filled by the user's own code.

    Args:
        kind: What is registered, as it appears in messages (for example ``"model"``).
        reserved: With what no name may begin, since such names are looked up elsewhere; empty for
            nothing.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... class Square: ...
        >>> shapes.get("square") is Square
        True
    """

    def __init__(self, kind: str, reserved: str = "") -> None:
        self.kind = kind
        self.reserved = reserved
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files its argument under ``name``.

        Raises:
            ConfigError: If the name is reserved, or already stands for another object. An object of
                the same qualified name (a module run twice, a notebook cell) replaces the old one.
        """
        if self.reserved and name.startswith(self.reserved):
            raise ConfigError(
                f"Found the {self.kind} name {name!r}; names that begin with {self.reserved!r} "
                "stand for functions of that package. Choose another name."
            )

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

    def load_entry_points(self, group: str | None = None) -> tuple[str, ...]:
        """Files what installed packages offer for this table, and returns the new names.

        Loading imports those packages; so it is done only where a program asks for it. A package
        offers an object in its ``pyproject.toml``, or a module that registers its objects itself::

            [project.entry-points."xtrainer.models"]
            tiny_mlp = "their_package.models:TinyMLP"

        Args:
            group: Of the entry points; None: ``"xtrainer."`` and the plural of the table's kind.

        Raises:
            ConfigError: Naming each entry point that cannot be loaded or whose name is taken, with
                its package. The others are filed all the same.
        """
        before, problems = set(self), []
        for point in importlib.metadata.entry_points(group=group or f"xtrainer.{self.kind}s"):
            try:
                entry = point.load()
                if not isinstance(entry, ModuleType):
                    self.register(point.name)(entry)
            except Exception as error:  # whatever the other package raises while it is imported
                package = "an unknown package" if point.dist is None else repr(point.dist.name)
                problems.append(
                    f"The entry point {point.name!r} ({point.value}) of {package} cannot be used: "
                    f"{type(error).__name__}: {error} Update or remove that package."
                )
        if problems:
            raise ConfigError(problems)
        return tuple(name for name in self if name not in before)

    def name_of(self, entry: object) -> str | None:
        """Returns the name an object is filed under, or None."""
        return next((name for name, known in self._entries.items() if known is entry), None)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __repr__(self) -> str:
        entries = [f"{name} = {_full_name(self._entries[name])}" for name in self]
        if len(entries) > 3:
            return "\n  ".join([f"Registry({self.kind!r}:", *entries]) + "\n)"
        return f"Registry({self.kind!r}: {', '.join(entries) or 'empty'})"


def _qualified_name(entry: object) -> str:
    # Not the module: a script imported under its own name was ``__main__`` before.
    return str(getattr(entry, "__qualname__", repr(entry)))


def _full_name(entry: object) -> str:
    module = getattr(entry, "__module__", None)
    return f"{module}.{_qualified_name(entry)}" if module else _qualified_name(entry)


models: Registry[Callable[..., Any]] = Registry("model")
optimizers: Registry[Callable[..., Any]] = Registry("optimizer", OPTAX)
schedules: Registry[Callable[..., Any]] = Registry("schedule", OPTAX)

_NAMES: dict[str, Callable[[], Iterable[str]]] = {}
"""What else a name in a file may stand for, by kind; told by the rooms that read such names."""


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


def register_optimizer(name: str) -> Callable[[Any], Any]:
    """Files a function that makes an optimizer, for ``OptimizerConfig(name=...)``.

    It is called with the schedule as ``learning_rate`` and with the config's ``kwargs``, and
    returns an ``optax.GradientTransformation``, as the functions of Optax do.

    Raises:
        ConfigError: If the name begins with ``optax.``, as those of Optax's own optimizers do.

    Example:
        >>> import optax
        >>> @register_optimizer("registry_doc_sign")
        ... def sign(learning_rate, power=0.0):
        ...     return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(
        ...         learning_rate))
        >>> "registry_doc_sign" in optimizers
        True
    """
    return optimizers.register(name)


def register_schedule(name: str) -> Callable[[Any], Any]:
    """Files a function that makes a schedule, for ``SchedulerConfig(name=...)``.

    It is called with the config's ``kwargs``, and returns a function from the number of updates
    made to the learning rate; warmup and cooldown are joined to it.

    Raises:
        ConfigError: If the name begins with ``optax.``, as those of Optax's own schedules do.

    Example:
        >>> @register_schedule("registry_doc_inverse")
        ... def inverse(peak):
        ...     return lambda step: peak / (1 + step)
        >>> "registry_doc_inverse" in schedules
        True
    """
    return schedules.register(name)


def tell_names(kind: str, names: Callable[[], Iterable[str]]) -> None:
    """Tells what names of a kind a room will look up that it reads in a file, for `safe_types`."""
    _NAMES[kind] = names


def safe_types() -> dict[str, tuple[str, ...]]:
    """Returns every name of a function or class that a saved config may refer to, by kind.

    That is what the program has registered, defined or imported so far, and the functions of Optax:
    whatever else a file names stays a text or is an error, and is never imported. ``config`` holds
    the classes that a ``class_name`` may choose among.

    Example:
        >>> @register_model("registry_doc_safe")
        ... class Net: ...
        >>> "registry_doc_safe" in safe_types()["model"], "os.system" in safe_types()["model"]
        (True, False)
    """
    found: dict[str, set[str]] = {
        table.kind: set(table) for table in (models, optimizers, schedules)
    }
    for kind, names in _NAMES.items():
        found[kind] = found.get(kind, set()) | set(names())
    return {kind: tuple(sorted(found[kind])) for kind in sorted(found)}


def import_folder(src_root: str | Path, import_prefix: str = "") -> tuple[str, ...]:
    """Imports every ``.py`` file below a folder, so that all it registers is registered.

    The folder comes from the program itself, never from a file that is read. Files and folders
    whose names begin with ``_`` or ``.`` are passed over, and so is the script that is running;
    what has been imported before is not run again.

    Args:
        src_root: The folder.
        import_prefix: Dotted name of the folder as a package, ``"my_project.models"``; a single
            name may be new. Empty: the folder's files are modules by themselves, and it is added to
            the end of ``sys.path``.

    Returns:
        The names of the modules, in the order in which they were imported.

    Raises:
        ConfigError: Naming the file that cannot be imported, or whose name or prefix stands for
            another module; nothing else is run after it.
    """
    root = Path(src_root).expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"src_root: found {str(src_root)!r}, expected a folder of Python files.")
    importlib.invalidate_caches()  # which would hide files that were written a moment ago
    _make_importable(root, import_prefix)
    running = getattr(sys.modules.get("__main__"), "__file__", None)
    found = {}
    for path in _python_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        parts = [import_prefix, *(parts[:-1] if parts[-1] == "__init__" else parts)]
        if (name := ".".join(filter(None, parts))) and not _is_file(running, path):
            found[name] = path
    names = sorted(found)  # a package before what is in it
    for name in names:
        _import_file(name, found[name])
    return tuple(names)


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(("_", "."))]
        for name in files:
            hidden = name.startswith(("_", ".")) and name != "__init__.py"
            if name.endswith(".py") and not hidden:
                yield Path(folder, name)


def _make_importable(root: Path, prefix: str) -> None:
    """Lets Python find the files of a folder under a prefix, or says why it may not."""
    if not prefix:
        if str(root) not in sys.path:
            sys.path.append(str(root))  # at the end: nothing that is installed is hidden by it
        return
    if not all(part.isidentifier() for part in prefix.split(".")):
        raise ConfigError(
            f"import_prefix: found {prefix!r}, expected the name of a package, as in an import."
        )
    try:
        spec = importlib.util.find_spec(prefix)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"import_prefix: found {prefix!r}, which has no package to be in ({error}). Use a "
            "single name, or the name under which the folder can be imported."
        ) from error
    if spec is None:
        _new_package(root, prefix)
    elif root not in [Path(place).resolve() for place in spec.submodule_search_locations or ()]:
        raise ConfigError(
            f"import_prefix: found {prefix!r}, which stands for {spec.origin or 'another folder'}, "
            f"and not for {root}. Choose a name that no module has."
        )


def _new_package(root: Path, name: str) -> None:
    """Makes a package of a folder that is nowhere on ``sys.path``."""
    places, file = [str(root)], root / "__init__.py"
    if file.is_file():
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    else:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = places
    if spec is None:
        raise ConfigError(f"{file} cannot be imported, expected a file of Python.")
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    if spec.loader is not None:
        try:
            spec.loader.exec_module(package)
        except Exception as error:
            del sys.modules[name]
            raise _unusable(file, name, error) from error


def _import_file(name: str, path: Path) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"{path} cannot be imported as {name!r}, which is no name in Python. Rename it, or let "
            "its name begin with _ to have it passed over."
        )
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever the file raises
        raise _unusable(path, name, error) from error
    file = getattr(module, "__file__", None)
    if not _is_file(file, path):
        raise ConfigError(
            f"{path} cannot be imported as {name!r}, which stands for {file or 'another module'}. "
            "Rename the file, or choose another import_prefix."
        )


def _unusable(path: Path, name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} cannot be imported as {name!r} ({type(error).__name__}: {error}). Correct it, or "
        "let its name begin with _ to have it passed over."
    )


def _is_file(file: str | None, path: Path) -> bool:
    return file is not None and Path(file).resolve() == path.resolve()

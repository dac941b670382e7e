"""Which compiled program takes these arguments? Compiled ahead where it can be, watched after."""

import atexit
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.errors import StepError
from xtrainer.launch.interrupts import BrokenOff
from xtrainer.tree import flatten_with_paths
from xtrainer.types import PyTree

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_COMPILED_ANEW = (": shape ", ": dtype ", ": weak_type ")

CompileFn = Callable[[jax.stages.Lowered, str], jax.stages.Compiled]
"""Compiles a lowered function of a name, in whatever thread."""


def spec_of(tree: PyTree) -> PyTree:
    """Returns arrays as ``jax.ShapeDtypeStruct``s, with sharding and weak type of device arrays."""
    return jax.tree.map(_spec, tree)


def describe_changes(before: PyTree, now: PyTree) -> list[str]:
    """Returns a line for each leaf of which shape, dtype, weak type or sharding has changed.

    Args:
        before: Shapes as :func:`spec_of` gives them.
        now: Shapes or arrays; one that was donated says so.

    Example:
        >>> old, new = ({"x": np.zeros(size, np.float32)} for size in (4, 3))
        >>> describe_changes(spec_of(old), spec_of(new))
        ['x: shape (3,), before (4,)']
    """
    old, new = flatten_with_paths(before), flatten_with_paths(now)
    lines = [f"{path}: is no more" for path in old if path not in new]
    lines += [f"{path}: is new" for path in new if path not in old]
    for path in old.keys() & new.keys():
        if getattr(new[path], "is_deleted", lambda: False)():
            lines.append(f"{path}: was donated to an earlier step and is gone")
            continue
        for name, first, second in _properties(old[path], _spec(new[path])):
            if first != second:
                lines.append(f"{path}: {name} {second}, before {first}")
    if not lines and jax.tree.structure(before) != jax.tree.structure(now):
        lines.append(
            f"the containers are {jax.tree.structure(now)}, before {jax.tree.structure(before)}"
        )
    return sorted(lines)


class Programs:
    """The compiled forms of one function, one for each shape of its batch.

    Args:
        name: What the function is called in messages.
        compile_program: Compiles what was lowered; as it is where None.
        level: Of the log, for reports of programs that nobody had asked for ahead.

    Attributes:
        compile_s: Seconds for which callers have waited for a program.
        breaks_off: Asked while a caller waits for a program; where it says True, it waits no more.
        recompilations: What was said of each program that nobody had asked for ahead.
    """

    def __init__(
        self, name: str, compile_program: CompileFn | None = None, level: int = logging.WARNING
    ) -> None:
        self.name = name
        self._level = level
        self.compile_s = 0.0
        self.breaks_off: Callable[[], bool] = lambda: False
        self.recompilations: list[str] = []
        self._compile = compile_program or (lambda lowered, name: lowered.compile())
        self._found: dict[Hashable, tuple[Future[jax.stages.Compiled], Mapping[str, Any]]] = {}

    def __len__(self) -> int:
        """Returns how many programs there are."""
        return len(self._found)

    @property
    def steps(self) -> set[int]:
        """For how many steps in one call there are programs."""
        return {key[-1] for key in self._found if isinstance(key, tuple)}

    def ahead(
        self, key: Hashable, function: Any, arguments: Mapping[str, Any]
    ) -> Future[jax.stages.Compiled]:
        """Begins to compile a program in a thread; tracing is done before this returns.

        Args:
            key: What the program is asked for by.
            function: Of ``jax.jit``.
            arguments: Its arguments or their shapes, by name and in order.
        """
        if key not in self._found:
            lowered = function.lower(*arguments.values())  # here: settings of JAX are the thread's
            program: Future[jax.stages.Compiled] = Future()
            self._keep(key, program, arguments)

            def work() -> None:
                try:
                    program.set_result(self._compile(lowered, self.name))
                except BaseException as error:  # raised where the program is asked for
                    program.set_exception(error)

            thread = threading.Thread(target=work, name=f"compile-{self.name}", daemon=True)
            _compiling[:] = [other for other in _compiling if other.is_alive()] + [thread]
            thread.start()
        return self._found[key][0]

    def get(
        self,
        key: Hashable,
        function: Any,
        arguments: Mapping[str, Any],
        reported: bool = False,
    ) -> jax.stages.Compiled:
        """Returns the program of a key; compiles it where that was not done ahead.

        A program besides those that were asked for ahead is reported, with what has changed, unless
        it is the first for as many steps or ``reported`` already.

        Raises:
            BrokenOff: If ``breaks_off`` has said so while it was compiled.
        """
        start = time.perf_counter()
        if key not in self._found:
            self._report(None if reported else self._changes(key, arguments))
            self.ahead(key, function, arguments)
        try:
            return self._wait(self._found[key][0])
        finally:
            self.compile_s += time.perf_counter() - start

    def _wait(self, program: Future[jax.stages.Compiled]) -> jax.stages.Compiled:
        while True:
            try:
                return program.result(_POLL_S)
            except TimeoutError:
                if program.done():  # it is the program's own
                    return program.result()
                if self.breaks_off():
                    raise BrokenOff from None

    def mend(
        self, key: Hashable, function: Any, arguments: Mapping[str, Any], error: Exception
    ) -> jax.stages.Compiled:
        """Returns a program for arguments that the one of their key has refused, and reports it.

        Raises:
            StepError: If an argument was donated before, lies on other devices than it should, or
                has other leaves than it should.
            Exception: The error, where nothing of the arguments has changed.
        """
        changes = describe_changes(self._found[key][1], dict(arguments))
        gone = any("was donated" in line for line in changes)
        if not changes or (gone and "deleted" not in str(error)):
            raise error  # of the step itself, which may have used up what it was given
        final = [line for line in changes if not any(name in line for name in _COMPILED_ANEW)]
        if final:
            raise StepError(
                f"{self.name} cannot take its arguments; found:\n  "
                + "\n  ".join(final)
                + "\nExpected arrays as the trainer has made them. Put replacements where the old "
                "ones were (jax.device_put(new, old.sharding)), and keep no state that a step was "
                "given: it is donated, unless donate_train_state=False."
            ) from error
        self._report(changes)
        del self._found[key]
        return self.get(key, function, arguments, reported=True)

    def _keep(
        self, key: Hashable, program: Future[jax.stages.Compiled], arguments: Mapping[str, Any]
    ) -> None:
        self._found[key] = (program, spec_of(dict(arguments)))

    def _changes(self, key: Hashable, arguments: Mapping[str, Any]) -> list[str] | None:
        """Returns how arguments differ from those of the program that is most like them.

        None where there is none for as many steps.
        """
        now = spec_of(dict(arguments))
        others = [
            specs for other, (_, specs) in self._found.items() if _steps(other) == _steps(key)
        ]
        return min((describe_changes(specs, now) for specs in others), key=len, default=None)

    def _report(self, changes: list[str] | None) -> None:
        if changes is None:
            return
        shown = changes[:10] + ([f"and {len(changes) - 10} more"] if len(changes) > 10 else [])
        text = "\n  ".join(shown) or "nothing that can be told apart"
        self.recompilations.append(text)
        fewer = any(line.startswith("row_mask: shape") for line in changes)
        _LOG.log(self._level, "%s is compiled again, since its arguments have changed:\n  %s.%s",
                 self.name, text, _OTHER_ROWS if fewer else "")  # fmt: skip


_OTHER_ROWS = (
    "\nThis is no fault, and happens once for each number of rows. Where it is the last batch of a "
    "pass that is smaller, drop_last=True of a training loader leaves it out."
)
_compiling: list[threading.Thread] = []


@atexit.register  # with the module, so that a program that is to end at once does so before it
def _wait_for_compiling() -> None:
    for thread in _compiling:
        thread.join()


def _steps(key: Hashable) -> Hashable:
    return key[-1] if isinstance(key, tuple) else None


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=leaf.sharding,
            weak_type=getattr(leaf, "weak_type", False),
        )
    array = np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, jnp.result_type(array.dtype))


def _properties(first: Any, second: Any) -> list[tuple[str, Any, Any]]:
    """Returns the properties that a program depends on; a host array may be put anywhere."""
    found = [(name, getattr(first, name), getattr(second, name)) for name in ("shape", "dtype")]
    weak = ("weak_type", bool(first.weak_type), bool(second.weak_type))
    places = [first.sharding, second.sharding]
    same = None in places or (
        len(first.shape) == len(second.shape)
        and places[0].is_equivalent_to(places[1], len(first.shape))
    )
    return [*found, weak, ("sharding", None if same else places[0], None if same else places[1])]

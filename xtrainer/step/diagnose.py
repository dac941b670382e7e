"""Where does a calculation stop being finite? Traced, run once more, and followed back.

A value that is not finite is no fault by itself: masks hold ``-inf``, a ``where`` may throw a NaN
away. So the search begins at the results that are not finite, and follows back only through values
that are not finite themselves, to where the first of them appears:

1. Where a result has a NaN: the first operation on that way that makes a NaN of inputs without.
2. Where the inputs of that one are infinite: the first operation that has made an infinity of
   finite numbers (an overflow, a division by 0). It is the cause, and the NaN what became of it.
   Infinities that stand in the program as constants are meant: what makes a NaN of them (``-inf -
   -inf`` where a mask leaves nothing) is the cause itself.
3. Where a result is infinite only: the first operation that made an infinity as in 2.

Synopsis:
    finding = find_nonfinite(loss, {"params": params, "batch": batch})
    print(finding)
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, JaxprEqn, Literal, jaxpr_as_fun

from xtrainer.step.calls import Call, calls, is_container
from xtrainer.step.places import Place, module_path, source_line
from xtrainer.tree import flatten_with_paths
from xtrainer.types import PyTree

_NAN, _INF = 1, 2
_ELEMENTWISE = frozenset(
    "add add_any atan2 clamp convert_element_type cosh div exp exp2 expm1 integer_pow log log1p "
    "logistic max min mul neg pow rem rsqrt select_n sinh sqrt square sub tan".split()
)
"""Operations whose entries depend on the entries at the same place alone."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first value that is not finite.

    Attributes:
        argument: Path of the argument that holds it, such as ``params/block_1/up/kernel``; empty
            where it appears in an operation.
        entry: Index of the argument's first such number.
        place: The operation in which it appears; None for an argument.
        turned: The operation that has made a NaN of infinities, where that is another one.
        constant: Whether no operation has made it: the program holds it as a constant.
    """

    argument: str = ""
    entry: tuple[int, ...] = ()
    place: Place | None = None
    turned: Place | None = None
    constant: bool = False

    def __str__(self) -> str:
        """Returns what was found in words, without a subject."""
        if self.argument:
            where = f", first at {list(self.entry)}" if self.entry else ""
            found = f"in what the step is given: {self.argument}{where}"
        else:
            found = f"in {self.place}" if self.place else "in a result"
            found += ", which is handed a constant that is not finite" if self.constant else ""
        return found + (f"; NaN appears in {self.turned}" if self.turned else "")


def find_nonfinite(function: Callable[..., Any], arguments: dict[str, PyTree]) -> Finding | None:
    """Returns where the first non-finite number of a function's results appears.

    The function is traced and compiled once more, with a look at every value it computes. Values
    inside of a loop are looked at in the iteration that is found, so that a layer in a scan over
    layers has its number.

    Args:
        function: Called with the values of ``arguments``, in their order.
        arguments: Trees of arrays by the name with which their paths begin.

    Returns:
        None where all results are finite.

    Example:
        >>> f = lambda x: jnp.log(x) - jnp.log(x)
        >>> finding = find_nonfinite(f, {"x": jnp.array([1.0, 0.0])})
        >>> finding.place.primitive, finding.place.infs, finding.turned.primitive
        ('log', 1, 'sub')
        >>> find_nonfinite(f, {"x": jnp.ones(2)}) is None
        True
    """
    closed = jax.make_jaxpr(function)(*arguments.values())
    leaves: dict[str, Any] = {}
    for name, tree in arguments.items():
        leaves |= flatten_with_paths({name: tree})
    level = _Level(closed, list(leaves.values()), {})
    for bit in (_NAN, _INF):
        if ends := level.having(closed.jaxpr.outvars, bit):
            return level.explain(ends, bit, list(leaves))
    return None


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function that is called once: on a CPU it is compiled in half the time."""
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(function, compiler_options=options)


def count_nonfinite(x: jax.Array) -> tuple[int, int]:
    """Returns how many numbers of an array are NaN, and how many Inf or -Inf."""
    return int(jnp.isnan(x).sum()), int(jnp.isinf(x).sum())


class _Program:
    """A traced function, and what is compiled to look into it."""

    def __init__(self, closed: ClosedJaxpr) -> None:
        self.closed, jaxpr = closed, closed.jaxpr
        seen = [*jaxpr.constvars, *jaxpr.invars]
        seen += [v for eqn in jaxpr.eqns for v in eqn.outvars if not isinstance(v, DropVar)]
        self.shown = [v for v in dict.fromkeys(seen) if _is_float(v)]
        self._bits = self.compiled(self.shown, _stacked_bits)

    def compiled(self, wanted: Sequence[Any], then: Callable[..., Any]) -> Callable[..., Any]:
        """Returns what computes ``then`` of the values of some variables from the arguments."""
        jaxpr = self.closed.jaxpr.replace(outvars=list(wanted))
        function = jaxpr_as_fun(ClosedJaxpr(jaxpr, self.closed.consts))
        return jit_once(lambda *args: then(function(*args)))

    def bits(self, args: Sequence[Any]) -> dict[Any, int]:
        """Returns for each variable of numbers whether it has a NaN, and whether an infinity."""
        if not self.shown:
            return {}
        return dict(zip(self.shown, np.asarray(self._bits(*args)).tolist(), strict=True))


class _Level:
    """A traced function with the arguments of one call.

    Args:
        closed: The function.
        args: The arguments.
        programs: What was compiled, by function; shared by all levels.
        stack: Names of the scopes around it.
        iterations: Of the loops around it, see :class:`Place`.
        source: The line that all of it is told as; None: the operations' own.
    """

    def __init__(
        self,
        closed: ClosedJaxpr,
        args: Sequence[Any],
        programs: dict[int, _Program],
        stack: str = "",
        iterations: tuple[tuple[int, int | None], ...] = (),
        source: str | None = None,
    ) -> None:
        self.jaxpr, self.args, self.programs = closed.jaxpr, args, programs
        self.stack, self.iterations, self.source = stack, iterations, source
        self.program = programs.setdefault(id(closed.jaxpr), _Program(closed))
        self._bits = self.program.bits(args)

    def has(self, atom: Any, bit: int) -> bool:
        """Says whether the value of a variable or constant has a NaN, or an infinity."""
        if isinstance(atom, Literal):
            return bool(_is_float(atom) and int(_bits_of(jnp.asarray(atom.val))) & bit)
        return bool(self._bits.get(atom, 0) & bit)

    def having(self, atoms: Iterable[Any], bit: int) -> list[Any]:
        """Returns those of which :meth:`has` is true."""
        return [atom for atom in atoms if self.has(atom, bit)]

    def values(self, atoms: Sequence[Any]) -> list[jax.Array]:
        """Returns the values of variables and constants."""
        return self.program.compiled(atoms, lambda values: values)(*self.args)

    def explain(self, ends: Sequence[Any], bit: int, names: Sequence[str] = ()) -> Finding:
        """Returns where the NaN or the infinity of results begins.

        Args:
            ends: The results.
            bit: Which of the two.
            names: Of the arguments, where they may be the cause; else they were judged before.
        """
        if bit == _INF:
            return self._infinity(ends, names) or self._constant(ends, bit)
        way, wanted = self._way(ends, bit)
        if found := self._argument(wanted, bit, names):
            return found
        for eqn in way:
            if self.having(eqn.invars, bit):
                continue
            infinite = [v for v in self.having(eqn.invars, _INF) if not isinstance(v, Literal)]
            cause = self._infinity(infinite, names) if infinite else None
            found = self.into(eqn, bit)
            return found if cause is None else dataclasses.replace(cause, turned=found.place)
        return self._constant(ends, bit)

    def _infinity(self, ends: Sequence[Any], names: Sequence[str]) -> Finding | None:
        """Returns what has made an infinity of finite numbers, None where only constants have."""
        way, wanted = self._way(ends, _INF)
        if found := self._argument(wanted, _INF, names):
            return found
        fresh = self._fresh(way)
        for eqn, is_fresh in zip(way, fresh, strict=True):
            inner = self.into(eqn, _INF) if is_container(eqn) else None
            if inner is not None and not inner.constant:
                return inner
            if inner is None and is_fresh:
                return Finding(place=self.place(eqn, _INF))
        return None

    def _constant(self, ends: Sequence[Any], bit: int) -> Finding:
        """Returns the first operation that hands on a constant which is not finite."""
        way, _ = self._way(ends, bit)
        if not way:
            return Finding(constant=True)
        return dataclasses.replace(self.into(way[0], bit), constant=True)

    def _way(self, ends: Sequence[Any], bit: int) -> tuple[list[JaxprEqn], set[Any]]:
        """Returns the operations on the way to results, in order, and the variables between."""
        wanted = {v for v in ends if not isinstance(v, Literal)}
        way = []
        for eqn in reversed(self.jaxpr.eqns):
            if any(self.has(v, bit) and v in wanted for v in eqn.outvars):
                way.append(eqn)
                inputs = self.having(eqn.invars, bit)
                wanted |= {v for v in inputs if not isinstance(v, Literal)}
        return way[::-1], wanted

    def _argument(self, wanted: set[Any], bit: int, names: Sequence[str]) -> Finding | None:
        for variable, name, value in zip(self.jaxpr.invars, names, self.args, strict=False):
            if variable in wanted and self.has(variable, bit):
                bad = jnp.isnan(value) if bit == _NAN else jnp.isinf(value)
                entry = np.unravel_index(int(jnp.argmax(bad.ravel())), bad.shape)
                return Finding(argument=name, entry=tuple(map(int, entry)))
        return None

    def _fresh(self, way: Sequence[JaxprEqn]) -> list[bool]:
        """Says of operations whether they make an infinity where all that goes in is finite."""
        unclear = []
        for index, eqn in enumerate(way):
            if eqn.primitive.name in _ELEMENTWISE and self.having(eqn.invars, _INF):
                unclear.append(index)
        result = [not self.having(eqn.invars, _INF) for eqn in way]
        if unclear:
            pairs = [(way[i], len(way[i].invars)) for i in unclear]
            atoms = [atom for eqn, _ in pairs for atom in (*eqn.invars, *eqn.outvars)]

            def look(values: list[jax.Array]) -> jax.Array:
                rest, said = iter(values), []
                for _, count in pairs:
                    inputs = [next(rest) for _ in range(count)]
                    said.append(_is_fresh(inputs, next(rest)))
                return jnp.stack(said)

            said = np.asarray(self.program.compiled(atoms, look)(*self.args)).tolist()
            for index, value in zip(unclear, said, strict=True):
                result[index] = value
        return result

    def place(self, eqn: JaxprEqn, bit: int) -> Place:
        """Returns an operation of this level and what is not finite in its result."""
        shown = [v for v in eqn.outvars if _is_float(v) and not isinstance(v, DropVar)]
        chosen = (self.having(shown, bit) or shown)[0]
        nans, infs = count_nonfinite(self.values([chosen])[0])
        module, backward = module_path(self.stack_of(eqn))
        aval: Any = chosen.aval
        source = self.source or source_line(eqn.source_info.traceback)
        where = (eqn.primitive.name, module, backward, self.iterations)
        return Place(*where, tuple(aval.shape), str(aval.dtype), nans, infs, source)

    def stack_of(self, eqn: JaxprEqn) -> str:
        """Returns the names of the scopes around an operation."""
        return f"{self.stack}/{eqn.source_info.name_stack}"

    def into(self, eqn: JaxprEqn, bit: int) -> Finding:
        """Returns where within an operation the NaN or the infinity of its result begins."""
        found = None
        if is_container(eqn):
            for call in calls(eqn, self.values(eqn.invars)):
                found = self._look(eqn, call, bit) or found
                if found is not None and (bit == _NAN or not found.constant):
                    return found
        return found or Finding(place=self.place(eqn, bit))

    def _look(self, eqn: JaxprEqn, call: Call, bit: int) -> Finding | None:
        """Looks into one call of an operation, where a result of it is not finite."""
        said, before = _host_bits(call.results), _host_bits(call.args)
        new = [
            number
            for number, bits in enumerate(said)
            if bits & bit and not (number in call.carried and before[call.carried[number]] & bit)
        ]
        if not new:
            return None
        # What is traced once for all its calls has the lines of the first one.
        is_shared = eqn.primitive.name in ("jit", "pjit")
        source = self.source or (source_line(eqn.source_info.traceback) if is_shared else None)
        where = (self.stack_of(eqn), (*self.iterations, *call.iteration), source)
        level = _Level(call.body, call.args, self.programs, *where)
        ends = level.having([call.body.jaxpr.outvars[number] for number in new], bit)
        return level.explain(ends, bit) if ends else None


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(getattr(atom.aval, "dtype", np.int32), jnp.inexact)


def _bits_of(x: jax.Array) -> jax.Array:
    return jnp.isnan(x).any() * np.uint8(_NAN) + jnp.isinf(x).any() * np.uint8(_INF)


def _stacked_bits(values: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([_bits_of(x) for x in values])


_compiled_bits = jax.jit(_stacked_bits)


def _host_bits(values: Sequence[Any]) -> list[int]:
    """Returns for each array what :func:`_bits_of` says, 0 for those of other things."""
    numbers = [i for i, x in enumerate(values) if jnp.issubdtype(x.dtype, jnp.inexact)]
    result = [0] * len(values)
    if numbers:
        said = np.asarray(_compiled_bits([values[i] for i in numbers])).tolist()
        for index, bits in zip(numbers, said, strict=True):
            result[index] = bits
    return result


def _is_fresh(inputs: Sequence[jax.Array], result: jax.Array) -> jax.Array:
    """Says whether an infinity stands where all inputs are finite."""
    fresh = jnp.isinf(result)
    for x in inputs:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            fresh &= jnp.isfinite(x) if x.shape == result.shape else jnp.isfinite(x).all()
    return fresh.any()

"""Which functions does an operation of a traced function call, and with which arguments?"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

_CALLS = frozenset(
    "jit pjit closed_call core_call core_closed_call custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr checkpoint remat remat2".split()
)
"""Operations that are one call of a function, with the arguments of the operation."""


class Call(NamedTuple):
    """One call of a function within an operation.

    Attributes:
        body: The function.
        args: Its arguments.
        results: What it returns.
        carried: From the number of a result to that of the argument that it will replace.
        iteration: Of a loop, and how many there are; None where that is not known before.
    """

    body: ClosedJaxpr
    args: list[Any]
    results: list[Any]
    carried: dict[int, int]
    iteration: tuple[tuple[int, int | None], ...] = ()


def is_container(eqn: JaxprEqn) -> bool:
    """Says whether :func:`calls` can look into an operation."""
    return eqn.primitive.name in _CALLS or eqn.primitive.name in _KINDS


def calls(eqn: JaxprEqn, values: Sequence[Any]) -> Iterator[Call]:
    """Yields the calls of an operation, loops iteration by iteration.

    Args:
        eqn: A container.
        values: Of its inputs.
    """
    if eqn.primitive.name in _KINDS:
        yield from _KINDS[eqn.primitive.name](eqn, list(values))
        return
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr | Jaxpr):
            body = value if isinstance(value, ClosedJaxpr) else ClosedJaxpr(value, ())
            yield _once(body, list(values))
            return


def _once(body: ClosedJaxpr, args: list[Any]) -> Call:
    return Call(body, args, jax.jit(jaxpr_as_fun(body))(*args), {})


def _cond(eqn: JaxprEqn, values: list[Any]) -> Iterator[Call]:
    branches = eqn.params["branches"]
    yield _once(branches[min(max(int(values[0]), 0), len(branches) - 1)], values[1:])


def _scan(eqn: JaxprEqn, values: list[Any]) -> Iterator[Call]:
    p = eqn.params
    body, length = p["jaxpr"], p["length"]
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    consts, carry, stacked = values[:first], values[first:last], values[last:]
    run = jax.jit(jaxpr_as_fun(body))
    carried = {number: first + number for number in range(len(carry))}
    for index in reversed(range(length)) if p["reverse"] else range(length):
        args = [*consts, *carry, *(x[index] for x in stacked)]
        results = run(*args)
        yield Call(body, args, results, carried, ((index, length),))
        carry = results[: len(carry)]


def _while(eqn: JaxprEqn, values: list[Any]) -> Iterator[Call]:
    p = eqn.params
    split = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    asked, consts, carry = values[: split[0]], values[split[0] : split[1]], values[split[1] :]
    goes_on, run = jax.jit(jaxpr_as_fun(p["cond_jaxpr"])), jax.jit(jaxpr_as_fun(p["body_jaxpr"]))
    carried = {number: len(consts) + number for number in range(len(carry))}
    index = 0
    while bool(goes_on(*asked, *carry)[0]):
        args = [*consts, *carry]
        carry = run(*args)
        yield Call(p["body_jaxpr"], args, carry, carried, ((index, None),))
        index += 1


_KINDS = {"cond": _cond, "scan": _scan, "while": _while}

"""Is every collective of a compiled program counted, as often as it is done?"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import xtrainer as xt
from xtrainer.parallel import Collective, collectives_of

LOOP = """\
%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %p = (s32[], f32[8]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=DIRECTION
}

%body (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0:T(128)} get-tuple-element(%p.1), index=1
  ROOT %sum = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = (s32[], f32[8]{0:T(128)S(1)}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%a), condition=%cond, body=%bodyCONFIG
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"3"}}'

FRAGMENTS = """\
%fused.1 (p: bf16[4]) -> bf16[8] {
  ROOT %g.1 = bf16[8]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%fused.2 (p: bf16[4]) -> bf16[8] {
  ROOT %g.2 = bf16[8]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%all-reduce-scatter.1 (q: f32[8]) -> f32[2] {
  %r = f32[8]{0} all-reduce(%q), channel_id=9, to_apply=%add
  ROOT %s = f32[2]{0} dynamic-slice(%r, %z), dynamic_slice_sizes={2}
}

ENTRY %main (a: bf16[4], b: f32[8]) -> f32[2] {
  %x = bf16[8]{0} fusion(%a), kind=kCustom, calls=%fused.1
  %y = bf16[8]{0} fusion(%a), kind=kCustom, calls=%fused.2
  ROOT %c = f32[2]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""

STARTED = """\
ENTRY %main (a: f32[4]) -> f32[16] {
  %a = f32[4]{0} parameter(0)
  %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%a), channel_id=1, dimensions={0}
  ROOT %d = f32[16]{0} all-gather-done(%s)
}
"""


def mesh() -> jax.sharding.Mesh:
    return xt.build_mesh(xt.ParallelConfig(), jax.devices()[:4])


def compiled_text(function: Any, *shapes: tuple[int, ...]) -> str:
    divided = NamedSharding(mesh(), PartitionSpec("dp"))
    arguments = [jax.ShapeDtypeStruct(shape, "float32", sharding=divided) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


def gather(x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh(), PartitionSpec()))


def test_a_gather_counts_once_with_the_bytes_of_what_it_makes() -> None:
    assert collectives_of(compiled_text(gather, (8, 3))) == (Collective("all-gather", 1, 96),)


def test_what_stands_in_a_scan_counts_for_each_turn() -> None:
    def scanned(x: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            divided = jax.lax.with_sharding_constraint(
                gather(carry)[::-1] * 2, NamedSharding(mesh(), PartitionSpec("dp"))
            )
            return divided, None

        return jax.lax.scan(body, x, None, length=6)[0]

    (found,) = collectives_of(compiled_text(scanned, (8, 3)))
    assert found == Collective("all-gather", 6, 6 * 96)


def test_a_loop_whose_end_the_data_decides_counts_one_turn_and_says_so() -> None:
    def until(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda c: c.sum() < 100, lambda c: c * c.sum(), x)

    found = collectives_of(compiled_text(until, (8,)))
    assert found and not any(one.exact for one in found)


def test_nothing_is_sent_where_nothing_need_be() -> None:
    assert collectives_of(compiled_text(jnp.sin, (8,))) == ()


@pytest.mark.parametrize(
    ("direction", "config", "expected"),
    [
        ("LT", KNOWN, Collective("all-reduce", 3, 96)),
        ("LT", "", Collective("all-reduce", 5, 160)),
        ("GT", "", Collective("all-reduce", 1, 32, exact=False)),
    ],
)
def test_turns_are_those_that_the_text_tells(
    direction: str, config: str, expected: Collective
) -> None:
    text = LOOP.replace("DIRECTION", direction).replace("CONFIG", config)
    assert collectives_of(text) == (expected,)


def test_one_operation_in_several_fusions_counts_once() -> None:
    assert collectives_of(FRAGMENTS) == (
        Collective("all-gather", 1, 16),
        Collective("reduce-scatter", 1, 8),
    )


def test_of_a_started_gather_only_the_result_counts() -> None:
    assert collectives_of(STARTED) == (Collective("all-gather", 1, 64),)

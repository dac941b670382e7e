"""Optimizers of groups that are moved one by one: what moves, what counts, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xtrainer as xt
from xtrainer.optim import TurnsState, scalable, takes_turns

GROUPS = (
    xt.ParamGroupConfig(name="head", params=("^head",), lr_factor=10.0, weight_decay=0.0),
    xt.ParamGroupConfig(name="body", params=("^body",)),
)
PARAMS = {"body": jnp.ones(2), "head": jnp.ones(3), "tail": jnp.ones(1)}
GRADS = jax.tree.map(lambda p: 4 * p, PARAMS)


def build(**changes):
    return xt.build_optimizer(xt.OptimizerConfig(groups=GROUPS, in_turns=True, **changes)).transform


def count_of(state):
    return {name: int(own["learning_rate"].count) for name, own in state.inner.items()}


def test_a_turn_moves_its_group_and_counts_for_it_alone():
    optimizer = build()
    updates, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, turn="head")
    assert [float(jnp.abs(updates[name]).sum()) > 0 for name in PARAMS] == [False, True, False]
    assert count_of(state) == {"rest": 0, "head": 1, "body": 0}


@pytest.mark.parametrize("name", ["adamw", "sgd", "optax.lion"])
def test_without_a_turn_all_groups_are_moved_as_their_own_optimizers_do(name):
    optimizer = build(name=name, weight_decay=0.1)
    updates, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    for group, lr, decay in (("head", 1e-2, 0.0), ("body", 1e-3, 0.1), ("tail", 1e-3, 0.1)):
        schedule = xt.SchedulerConfig(lr=lr)
        kwargs = {"kwargs": {"weight_decay": 0.0}} if decay == 0 and "." in name else {}
        config = xt.OptimizerConfig(name=name, scheduler=schedule, weight_decay=decay, **kwargs)
        alone = xt.build_optimizer(config).transform
        part = {group: PARAMS[group]}
        wanted, _ = alone.update({group: GRADS[group]}, alone.init(part), part)
        np.testing.assert_allclose(updates[group], wanted[group], rtol=1e-6)
    assert isinstance(state, TurnsState)


def test_a_norm_is_clipped_for_each_group_alone():
    optimizer = build(name="sgd", grad_clip_norm=1.0)
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    norms = {name: float(jnp.linalg.norm(update)) for name, update in updates.items()}
    assert norms == pytest.approx({"body": 1e-3, "head": 1e-2, "tail": 1e-3})


def test_a_group_is_not_kept_where_it_has_no_parameter():
    optimizer = build()
    assert set(optimizer.init({"body": PARAMS["body"], "head": PARAMS["head"]}).inner) == {
        *("body", "head"),
    }


def test_turns_are_found_within_what_is_around_them():
    assert takes_turns(scalable(build(freeze=("tail",))).init(PARAMS))
    assert not takes_turns(
        scalable(xt.build_optimizer(xt.OptimizerConfig()).transform).init(PARAMS)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_turns": True}, "in_turns: found True without groups"),
        ({"in_turns": True, "groups": GROUPS, "ema_decay": 0.9}, "found True with ema_decay=0.9"),
        ({"in_turns": True, "groups": GROUPS, "name": "lbfgs"}, "one step moves all together"),
    ],
)
def test_what_cannot_be_moved_in_turns_is_refused(settings, message):
    with pytest.raises(xt.ConfigError, match=message):
        xt.build_optimizer(xt.OptimizerConfig(**settings))

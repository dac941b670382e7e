"""Does the record of a refused step suffice to find its cause, whatever was planted?"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.step import diagnose_step
from xtrainer.trainer.box_files import read_batch, read_records

ROWS, BAD, STEPS = 16, 4, 6
LAYOUTS = {"whole": (1, 1), "accumulated on eight devices": (8, 2)}


@jax.custom_jvp
def steep(x: jax.Array, flag: jax.Array) -> jax.Array:
    """Returns ``x``; where the flag is set its derivative is Inf."""
    return x


steep.defjvp(lambda x, dx: (x[0], dx[0] * jnp.where(x[1], jnp.inf, 1.0)))


class Planted(probes.Traced):
    """A classifier whose gradient is Inf for a batch that holds a target of 2 in every row."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch["inputs"], train=train)
        logits = steep(logits, (batch["targets"] == 2).all())
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return loss, ({"rows": jnp.ones_like(loss)}, {})


def batches(what: str) -> list[probes.Batch]:
    """Returns batches, into that of step ``BAD`` of which something is planted."""
    found = probes.numbered(STEPS, rows=ROWS)
    if what == "gradient":
        found[BAD - 1]["targets"] = np.full(ROWS, 2, np.int32)
    else:
        found[BAD - 1]["inputs"][5, 1] = float(what)
    return found


@pytest.fixture(scope="module", params=[*LAYOUTS])
def stages(request: pytest.FixtureRequest) -> dict[str, probes.Repeatable]:
    """A trainer for each policy, in one layout."""
    devices, accumulate = LAYOUTS[request.param]

    def make(policy: Any) -> probes.Repeatable:
        trainer = probes.traced(
            trainer_class=Planted,
            model={"width": 8},
            batch=probes.one(0, ROWS),
            mesh=zoo.devices(devices),
            gradient_accumulate_steps=accumulate,
            nonfinite_policy=policy,
        )
        return probes.Repeatable(trainer)

    return {policy: make(policy) for policy in ("stop", "skip")}


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_record_leads_to_what_was_planted(
    stages: dict[str, probes.Repeatable], tmp_path: Path, policy: str, what: str
) -> None:
    trainer = stages[policy].begin(folder=tmp_path)
    trainer.train_model(batches(what), num_train_steps=STEPS)
    assert trainer.global_step == (BAD - 1 if policy == "stop" else STEPS)
    assert trainer.stop_reason is (
        xt.StopReason.NONFINITE if policy == "stop" else xt.StopReason.FINISHED
    )
    (record,) = read_records(tmp_path).values()
    assert (record["step"], record["why"]) == (BAD, "refused")
    kept = read_batch(tmp_path, record, trainer.exmp_batch)
    assert kept is not None
    zoo.assert_same(kept[0], batches(what)[BAD - 1])
    bad = {name for name, norm in record["norms"]["gradients"].items() if isinstance(norm, str)}
    assert "Dense_0/kernel" in bad

    parts = (trainer.loss_function, trainer.model.apply, trainer.optimizer)
    said = diagnose_step(*parts, trainer.step_settings(), trainer.state, *kept)
    assert said.finding is not None
    if what == "gradient":
        assert (said.phase, said.finding.argument) == ("backward pass", "")
    else:
        assert said.phase == "forward pass"
        assert (said.finding.argument, said.finding.entry) == ("batch/inputs", (5, 1))

"""The same with Levanter, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.levanter SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import tempfile
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    import haliax as hax
    import jax
    import numpy as np
    import optax
    from levanter.checkpoint import CheckpointerConfig
    from levanter.tracker.tensorboard import TensorboardConfig
    from levanter.trainer import Trainer, TrainerConfig

    imported = time.time() - began
    rows, features, classes = hax.make_axes(batch=32, inputs=16, labels=10)

    def init() -> hax.nn.MLP:
        return hax.nn.MLP.init(features, classes, 16, 4, out_first=False, key=jax.random.key(0))

    def loss_of(model: hax.nn.MLP, batch: dict, key: object = None) -> jax.Array:
        logits, targets = model(batch["inputs"]).array, batch["targets"].array
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(10, size=(32,)).astype(np.int32)
    batch = {
        "inputs": hax.named(jax.device_put(inputs), (rows, features)),
        "targets": hax.named(jax.device_put(targets), (rows,)),
    }
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        config = TrainerConfig(
            id="tiny",
            tracker=TensorboardConfig(logdir=folder),
            log_jaxprs=False,
            log_xla_hlo=False,
            train_batch_size=32,
            num_train_steps=1,
            checkpointer=CheckpointerConfig(base_path=folder, keep=[]),
            load_checkpoint=False,
        )
        optimizer = optax.with_extra_args_support(optax.adam(1e-3))
        with Trainer(config, optimizer, loss_of, add_default_hooks=False) as trainer:
            state = trainer.initial_state(jax.random.PRNGKey(0), model_init=init)
            info = trainer.train(state, [batch])
            jax.block_until_ready(info.state)
            found = {"imports": imported, "first step": time.time() - began}
            print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))

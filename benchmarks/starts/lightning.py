"""The same with Lightning, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.lightning SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    import lightning
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    imported = time.time() - began

    class Classifier(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.net.parameters(), lr=1e-3)

    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(32, 16)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(10, size=(32,)))
    hidden = [part for _ in range(4) for part in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(16, 10))
    trainer = lightning.Trainer(
        max_steps=1,
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=32)
    trainer.fit(Classifier(model), loader)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    found = {"imports": imported, "first step": time.time() - began}
    print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))

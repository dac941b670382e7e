"""The same with PyTorch alone, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.torch SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    import numpy as np
    import torch
    from torch import nn

    imported = time.time() - began
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(32, 16)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(10, size=(32,)))
    hidden = [part for _ in range(4) for part in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(16, 10))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device))
    loss.backward()
    optimizer.step()
    loss.item()
    found = {"imports": imported, "first step": time.time() - began}
    print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))

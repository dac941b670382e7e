"""How does Grain read samples? In which order, by which threads and worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from xtrainer.data.stream import PartSource, SampleStream
from xtrainer.errors import LoaderError, require


def samples_of(
    grain: Any, source: Any, shuffle: bool, seed: int, transforms: Sequence[Any]
) -> SampleStream:
    """Returns the stream of a source; its numbers, not the process, decide what is in it."""
    dataset = source if isinstance(source, grain.MapDataset) else grain.MapDataset.source(source)
    order = None
    shuffle_seed, transform_seed = map(int, np.random.SeedSequence(seed).generate_state(2))
    if shuffle:
        dataset = dataset.shuffle(shuffle_seed)
        order = grain.MapDataset.range(len(source)).shuffle(shuffle_seed)
    dataset = dataset.seed(transform_seed)
    kinds = grain.transforms
    for transform in transforms:
        if isinstance(transform, kinds.Map | kinds.RandomMap | kinds.MapWithIndex):
            dataset = dataset.apply(transform)
        elif callable(transform) and not isinstance(transform, kinds.Filter):
            dataset = dataset.map(transform)
        else:
            raise LoaderError(
                f"Found the transform {transform!r}, expected Grain's Map, RandomMap or "
                "MapWithIndex, or a function: one sample becomes one sample, so that positions "
                "are known. Filter the source beforehand; batches are made by batch_size."
            )
    return SampleStream(dataset, order, len(source))


def open_reader(source: PartSource, num_workers: int, num_threads: int, read_ahead: int) -> Any:
    """Returns a Grain iterator over the batches, read by threads or worker processes."""
    grain = require("grain", "grain")
    threads = min(num_threads, read_ahead)
    options = grain.ReadOptions(threads, read_ahead if threads else 0)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if num_workers:
        flags = require("absl.flags", "grain").FLAGS
        if not flags.is_parsed():  # Grain reads its own from them; a script may have none
            flags.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers, max(read_ahead, 1))
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_begin_worker)
    return iter(dataset)


def _begin_worker(index: int, count: int) -> None:
    """Prepares a worker process: it takes no device, and ends with the process it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends it
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

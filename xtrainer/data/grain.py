"""How is a Grain dataset read by any number of processes? By one position in one global order.

Synopsis:
    loader = GrainLoader(source, batch_size=256, shuffle=True, transforms=[Crop()], num_workers=4)
    trainer.train_model(loader, GrainLoader(validation, 256), num_epochs=10)

A ready ``grain.DataLoader`` or ``grain.IterDataset`` needs no wrapper: any loader with Grain's
``get_state`` and ``set_state`` may be given to the trainer. On several processes it must read its
own rows itself, and what its state means is its own affair: that of an ``IterDataset`` counts the
batches of one process, and that of a ``DataLoader`` is refused by every other shard and count.
"""

import dataclasses
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xtrainer.counts import MAX_COUNT, MAX_SEED, as_int, wanted_count
from xtrainer.data.grain_reader import open_reader, samples_of
from xtrainer.data.shard import check_resize, shard_rows
from xtrainer.data.stream import BatchPlan, PartReader, PartSource, stack
from xtrainer.data.whole_pass import WholePass
from xtrainer.errors import LoaderError, require
from xtrainer.types import JSON, BatchLike, DataShard

_MAX_SHUFFLED = 2**32  # Grain's shuffle has 32 bits
_STATE = {"next_sample", "num_samples", "pass_ended"}


class SampleSource(Protocol):
    """What is asked of a source: random access to its samples, from several threads at once."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Returns a sample, a pytree without a batch axis."""
        ...


class GrainLoader:
    """Batches of a Grain dataset, the same ones in the same order on any number of processes.

    An epoch takes each sample once; no batch has samples of two epochs. Each ``iter()`` is the
    next pass, or the rest of the one given to ``set_state``; an iterator from before ends with an
    error. The position is the number of the next sample in the endless stream of all epochs: it
    is equal in all processes, counts what was handed out, not what was read ahead, and is valid
    for another number of processes or workers and for another batch size.

    Random transforms (``grain.transforms.RandomMap``) draw by the seed and by the sample's number
    in that stream, so a sample is changed in the same way in whichever process it is read, and
    anew in each epoch.

    Readers run on between passes and ahead of them; ``close`` ends them. Worker processes start
    anew where a pass is left early, and import the main script, which therefore needs the usual
    ``if __name__ == "__main__":``.

    Args:
        source: Samples by number: a ``grain.MapDataset`` or anything with ``__len__`` and
            ``__getitem__``, not sharded and not batched; with ``num_workers``, it is copied.
        batch_size: Samples of a batch, over all processes.
        shuffle: Whether each epoch has an order of its own, given by ``seed`` and the epoch.
        seed: Seed of the orders and of random transforms, 0 to 2**32 - 1. A dataset's own
            random steps keep their own.
        drop_remainder: Whether a last batch of an epoch with fewer samples is left out.
        num_epochs: Epochs of a pass; None: it has no end.
        transforms: What is done with each sample in turn: Grain's ``Map``, ``RandomMap``,
            ``MapWithIndex`` (the index is the number in the stream), or functions of the sample.
        collate: Makes a batch of a list of samples; the leaves are stacked if None.
        num_workers: Processes that read ahead; 0: threads of this process do.
        num_threads: Threads that read batches, in each worker where there are workers; 0: none.
        read_ahead: Batches read ahead of the loop, by each worker where there are workers.

    Raises:
        LoaderError: If the sizes are wrong or give no batch, or something cannot be read so.
        MissingDependencyError: If Grain is not installed.

    Example:
        >>> loader = GrainLoader([{"inputs": index} for index in range(5)], batch_size=2)
        >>> [batch["inputs"].tolist() for batch in loader]
        [[0, 1], [2, 3], [4]]
        >>> loader.get_state()
        {'next_sample': 5, 'num_samples': 5, 'pass_ended': True}
    """

    def __init__(
        self,
        source: SampleSource,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_remainder: bool = False,
        num_epochs: int | None = 1,
        transforms: Sequence[Any] = (),
        collate: Callable[[list[Any]], BatchLike] | None = None,
        num_workers: int = 0,
        num_threads: int = 2,
        read_ahead: int = 4,
    ) -> None:
        grain = require("grain", "grain")
        num_samples = _checked_length(source)
        _check_sizes(batch_size, seed, num_epochs, num_workers, num_threads, read_ahead)
        batch_size, seed, num_epochs = as_int(batch_size), as_int(seed), as_int(num_epochs)
        plan = BatchPlan(num_samples, batch_size, drop_remainder)
        if plan.per_epoch == 0:
            raise LoaderError(
                f"Found {num_samples} samples for batch_size={batch_size} and "
                f"drop_remainder={drop_remainder}, expected at least one batch. Give more "
                "samples, a smaller batch_size or drop_remainder=False."
            )
        if shuffle and num_samples > _MAX_SHUFFLED:
            raise LoaderError(
                f"Found {num_samples} samples to shuffle, expected at most {_MAX_SHUFFLED}. Leave "
                "repeat() to num_epochs, or shuffle in the dataset."
            )
        self.num_samples = num_samples
        self.batch_size: int = batch_size
        """Samples of the batches of the pass under way."""
        self.num_epochs = None if num_samples == sys.maxsize else num_epochs
        self._plan = plan
        self._pass_samples = num_samples * (self.num_epochs or 1)
        self._reader = PartReader(
            samples_of(grain, source, shuffle, seed, transforms), collate or stack
        )
        self._made_of = (source, tuple(transforms), collate)
        self._options = (num_workers, num_threads, read_ahead)
        self._shard = DataShard()
        self._rows = slice(0, batch_size)
        self._first_size = self._next_size = batch_size
        self._position = 0
        self._ended = False
        self._continue = True
        self._current: _Pass | None = None
        self._stream: _Stream | None = None

    def __len__(self) -> int:
        """Returns the number of batches of a pass.

        Raises:
            TypeError: If the loader has no end.
        """
        if self.num_epochs is None:
            raise TypeError("A GrainLoader without an end has no length.")
        return self.num_epochs * self._plan.per_epoch

    def __iter__(self) -> Iterator[BatchLike]:
        """Returns the batches of the next pass, or the rest of the one given to ``set_state``."""
        if not self._continue:
            if not self._ended and self.num_samples < sys.maxsize:  # was it left early?
                passes = -(-self._position // self._pass_samples)
                self._position = passes * self._pass_samples
            self._ended = False
        self._continue = False
        if not self._ended and self._position % self._pass_samples == 0:
            self._resize(self._next_size)
        self._current = _Pass(self)
        return self._current

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch from the next one on, also in an ``iter()`` begun before.

        Length and positions stay those of whole batches: they are equal in all processes.

        Raises:
            LoaderError: If there is no such part, or the batch size does not divide into them.
        """
        self._rows = shard_rows(shard, self.batch_size)
        self._shard = shard

    def set_batch_size(self, batch_size: int) -> None:
        """Gives batches of so many samples from the next pass on, see ``ResizableLoader``.

        Raises:
            LoaderError: If an epoch has fewer samples, or the batch size does not divide into the
                parts of the processes; or if a pass has no end.
        """
        sizes = (batch_size, self.batch_size, self.num_samples)
        check_resize(*sizes, self._shard, ends=self.num_epochs is not None)
        self._next_size = as_int(batch_size)

    def _resize(self, batch_size: int) -> None:
        if batch_size != self.batch_size:
            self._plan = dataclasses.replace(self._plan, batch_size=batch_size)
            self._rows = shard_rows(self._shard, batch_size)
            self.batch_size = self._next_size = batch_size

    def example(self) -> BatchLike:
        """Returns the first batch of the first epoch, whole, and leaves the position as it is."""
        return self._reader.read(self._plan, 0, slice(0, self.batch_size))

    def for_evaluation(self) -> WholePass:
        """Returns a loader of all samples in their order, once, whose place is its own.

        Random transforms change each sample in the same way in every evaluation.

        Raises:
            LoaderError: If the source has no end.
        """
        if self.num_samples == sys.maxsize:
            raise LoaderError(
                "Found a GrainLoader of a source without an end, expected one that can be "
                "evaluated as a whole. Leave repeat() to num_epochs."
            )
        source, transforms, collate = self._made_of
        workers, threads, ahead = self._options
        return WholePass(
            GrainLoader(
                source,
                self.batch_size,
                transforms=transforms,
                collate=collate,
                num_workers=workers,
                num_threads=threads,
                read_ahead=ahead,
            )
        )

    def fingerprint(self) -> str:
        """Returns the number of samples: a source may give a sample anew each time it is read."""
        return f"{self.num_samples} samples"

    def get_state(self) -> JSON:
        """Returns the number of the next sample, and whether the newest pass is over.

        And the size of its batches, where that is not the one the loader was made with.
        """
        state = {
            "next_sample": self._position,
            "num_samples": self.num_samples,
            "pass_ended": self._ended,
        }
        grown = self.batch_size != self._first_size
        return {**state, "batch_size": self.batch_size} if grown else state

    def set_state(self, state: JSON) -> None:
        """Makes the next ``iter()`` go on where ``get_state`` was called, in whatever process.

        Raises:
            LoaderError: If the state is not of such a loader, or the samples have become others.
        """
        good = isinstance(state, dict) and set(state) - {"batch_size"} == _STATE
        size = state.get("batch_size", self._first_size) if good else 0
        good = good and not wanted_count(size, 1, max(self.num_samples, self._first_size))
        good = good and type(state["next_sample"]) is int and type(state["pass_ended"]) is bool
        if not good or state["next_sample"] < 0:
            raise LoaderError(
                f"Found the loader state {state!r}, expected {{'next_sample': >= 0, 'num_samples': "
                f"{self.num_samples}, 'pass_ended': bool}}. Use a checkpoint of a GrainLoader."
            )
        if state["num_samples"] != self.num_samples:
            raise LoaderError(
                f"Found the position of a loader of {state['num_samples']} samples, expected one "
                f"of {self.num_samples}: with another number, the order is another. Use the data "
                "of the run that saved it, or begin with a new loader."
            )
        self._resize(size)
        self._next_size = size
        saved, ended = state["next_sample"], state["pass_ended"]
        self._position = self._plan.batch(saved, 0).start
        if self._position > saved and self.num_epochs:  # a tail too small for this batch size
            ended = ended or self._position % self._pass_samples == 0
        self._ended = ended
        self._continue = True
        self._current = None

    def close(self) -> None:
        """Ends the threads and processes that read ahead; the next batch starts new ones."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _next(self) -> BatchLike:
        if self._ended:
            raise StopIteration
        stream = self._stream
        if stream is None or (stream.position, stream.rows) != (self._position, self._rows):
            self.close()
            source = PartSource(self._reader, self._plan, self._position, self._rows)
            iterator = open_reader(source, *self._options)
            close = weakref.finalize(self, iterator.close)  # at the latest when Python ends
            stream = self._stream = _Stream(iterator, close, self._position, self._rows)
        try:
            batch = next(stream.iterator)
        except BaseException:
            self.close()  # nobody knows where its readers stand now
            raise
        after = self._plan.batch(self._position, 1).start
        if self.num_epochs is not None:
            self._ended = after // self._pass_samples > self._position // self._pass_samples
        self._position = stream.position = after
        return batch


class _Pass:
    """The iterator over one pass; the loader keeps the position."""

    def __init__(self, loader: GrainLoader) -> None:
        self._loader = loader

    def __iter__(self) -> "_Pass":
        return self

    def __next__(self) -> BatchLike:
        if self._loader._current is not self:
            raise LoaderError(
                "Found an iterator of a GrainLoader from before its last iter() or set_state(), "
                "expected the newest one. Read one at a time, or make two loaders."
            )
        return self._loader._next()


@dataclass
class _Stream:
    """A Grain iterator over the parts of all batches from some position on, without end."""

    iterator: Any
    close: Callable[[], object]
    position: int
    rows: slice


def _checked_length(source: Any) -> int:
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise LoaderError(
            f"Found a {type(source).__name__} as the source of a GrainLoader, expected a "
            "grain.MapDataset or an object with __len__ and __getitem__. A grain.DataLoader or "
            "grain.IterDataset is a loader by itself: give it to the trainer as it is."
        )
    return len(source)


def _check_sizes(
    batch_size: int,
    seed: int,
    num_epochs: int | None,
    num_workers: int,
    num_threads: int,
    read_ahead: int,
) -> None:
    least = {
        "batch_size": (batch_size, 1),
        "seed": (seed, 0),
        "num_epochs": (1 if num_epochs is None else num_epochs, 1),
        "num_workers": (num_workers, 0),
        "num_threads": (num_threads, 0),
        "read_ahead": (read_ahead, 0),
    }
    most = {"seed": MAX_SEED}
    wrong = [
        f"{name}={found!r}"
        for name, (found, bound) in least.items()
        if wanted_count(found, bound, most.get(name, MAX_COUNT))
    ]
    if wrong:
        raise LoaderError(
            f"Found {', '.join(wrong)} for a GrainLoader, expected whole numbers: batch_size and "
            f"num_epochs from 1, a seed from 0 to 2**32 - 1, others from 0 to {MAX_COUNT}."
        )

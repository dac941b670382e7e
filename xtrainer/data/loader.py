"""How is a user's loader read, so that no batch is lost and its position is always known?"""

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from xtrainer.data.loader_state import state_from_json, state_to_json
from xtrainer.data.ownership import Owner
from xtrainer.data.position import LoaderPosition
from xtrainer.errors import LoaderError
from xtrainer.types import JSON, BatchLike, FingerprintedLoader, StatefulLoader

_LOG = logging.getLogger(__name__)


class LoaderSource:
    """A user's loader, owned for the whole life of a trainer.

    ``pull`` reads ahead and ``commit`` says what was used; ``next_host`` does both. What was read
    and not used is given back by ``push_back`` and is handed out first.

    Args:
        loader: Any iterable of batches. An iterator is read once, whatever the number of passes.
            ``get_state`` and ``set_state`` are used where the iterator, or else the loader, has
            them; after ``set_state`` of a loader, its next ``iter()`` goes on from there.
        name: What the loader is called in messages, such as ``"train"``.

    Attributes:
        on_new_pass: Called when a new pass has begun.
        is_quick: Whether batches have come faster than a thread could hand them over.
        timeout_s: Seconds that a reader waits for a batch at most; 0 or less: for ever.
        process: What is made of each batch as soon as it is read, once; None: nothing.

    Raises:
        LoaderError: If the loader cannot be iterated.

    Example:
        >>> import numpy as np
        >>> source = LoaderSource([np.zeros(2), np.ones(2)], "train")
        >>> batch, position = source.next_host()
        >>> position
        LoaderPosition(pass_index=0, batches=1, state=None)
    """

    def __init__(self, loader: Iterable[BatchLike], name: str) -> None:
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise LoaderError(
                f"Found a {type(loader).__name__} as the {name!r} loader, expected an iterable of "
                f"batches. {_way_out(loader)}"
            )
        self.loader: Any = loader
        self.name = name
        self._iterator: Iterator[BatchLike] | None = None
        self._owner: StatefulLoader | None = None
        self._position = LoaderPosition()
        self._produced = LoaderPosition()
        self._first_state: JSON = None
        self._ahead: deque[tuple[BatchLike, LoaderPosition]] = deque()
        self._to_skip = 0
        self._restored = False  # set_state was called and nothing was read since
        self._ended = False
        self._error: Exception | None = None
        self._reader: object | None = None
        self.on_new_pass: Callable[[], None] = lambda: None
        self.is_quick = False
        self.timeout_s = 0.0
        self.process: Callable[[BatchLike], BatchLike] | None = None
        self._own = Owner()

    @property
    def is_one_shot(self) -> bool:
        """Whether the loader is an iterator, which cannot be started again."""
        return isinstance(self.loader, Iterator)

    @property
    def length(self) -> int | None:
        """The number of batches of a pass, None where the loader does not know it."""
        try:
            return len(self.loader)
        except Exception:  # a user's __len__ may raise anything; no length is no error
            return None

    @property
    def position(self) -> LoaderPosition:
        """The place behind the last batch that was used."""
        return self._position

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """What the loader says its data are, None where it does not; asked for once.

        Raises:
            LoaderError: If that is no text.
        """
        loader = self.loader
        if not isinstance(loader, FingerprintedLoader) or not callable(loader.fingerprint):
            return None
        found = loader.fingerprint()
        if not isinstance(found, str):
            raise LoaderError(
                f"fingerprint() of the {self.name!r} loader gave a {type(found).__name__}, "
                "expected a text. Return a version of the data, or a checksum in hexadecimal."
            )
        return found

    def peek(self) -> BatchLike:
        """Returns the next batch without using it up.

        Raises:
            StopIteration: At the end of the pass.
        """
        batch, position = self.pull()
        self.push_back([(batch, position)])
        return batch

    def next_host(self) -> tuple[BatchLike, LoaderPosition]:
        """Returns the next batch, which counts as used, and the position behind it.

        Raises:
            StopIteration: At the end of the pass.
        """
        batch, position = self.pull()
        self.commit(position)
        return batch, position

    def pull(self, reader: object | None = None) -> tuple[BatchLike, LoaderPosition]:
        """Reads the next batch ahead; ``commit`` its position when it is used.

        Host arrays are copied before the loader is asked for more. An error of the loader is
        raised again by every later call, until ``new_pass`` or ``restore``: what an iterator
        gives after an error is not its next batch.

        Raises:
            StopIteration: At the end of the pass.
            BatchError: If the leaves of the batch have different leading axes.
            LoaderError: If another reader has the loader, or its state is not JSON.
        """
        if self._reader is not reader:
            self._check_reader(reader)
        try:
            if self._to_skip:
                self._fast_forward()
            if self._ahead:
                return self._ahead.popleft()
            box = [self._next_raw()]
            if self.process is not None:
                box[0] = self.process(box[0])
            batch = self._own(box)
            state = None if self._owner is None else self._read_state()
            made = self._produced.after_one(state)
        except StopIteration:
            raise
        except Exception as error:
            if error is not self._error:
                error.add_note(self.note(self._produced.batches + 1))
                self._error = error
            raise
        self._produced = made
        return batch, made

    def note(self, batch: int) -> str:
        """Returns what is added to an error that came up with a batch, counted from 1."""
        return f"while reading batch {batch} of the {self.name!r} loader"

    def commit(self, position: LoaderPosition) -> None:
        """Records that the batch in front of ``position`` is in use."""
        self._position = position

    def push_back(self, entries: Sequence[tuple[BatchLike, LoaderPosition]]) -> None:
        """Takes back what was pulled and not used, in the order in which it was pulled."""
        self._ahead.extendleft(reversed(entries))

    def claim(self, reader: object) -> None:
        """Makes ``reader`` the only one that may pull.

        Raises:
            LoaderError: If another reader has the loader.
        """
        self._check_reader(reader)
        self._reader = reader

    def release(self, reader: object) -> None:
        """Lets others pull again."""
        if self._reader is reader:
            self._reader = None

    def new_pass(self) -> None:
        """Starts the next pass: ``iter(loader)``; batches read ahead of the old one are dropped.

        A pass of which nothing was used is not left. An iterator goes on where it is and drops
        nothing, since it cannot be started again.

        Raises:
            LoaderError: If a reader has the loader.
        """
        self._check_reader(None)
        if self.is_one_shot:
            if self._ended and not self._ahead:
                # Iterators whose iter() starts them again do so here; others stay at their end.
                self._open(self._produced.pass_index + 1)
            return
        fresh = self._position.batches == 0 and not (self._ended and not self._ahead)
        if fresh and self._iterator is not None and self._error is None:
            return
        if self._restored and self._owner is self.loader and self._iterator is not None:
            # The loader goes on with the pass it was put into: enter that one in order to leave it.
            next(self._iterator, None)
        self._ahead.clear()
        self._to_skip = 0
        self._open(self._position.pass_index + (0 if fresh else 1))
        self._position = self._produced
        self.on_new_pass()

    def restore(self, position: LoaderPosition) -> None:
        """Puts the loader behind the batch that was used last when ``position`` was taken.

        With ``set_state`` where both the position and the loader have a state. Else by count: the
        batches before it are read again and dropped at the next ``pull``, with a warning that
        says how many and how long it took; ``new_pass`` before that costs nothing.

        Raises:
            LoaderError: If an iterator without ``set_state`` is already further.
        """
        self._check_reader(None)
        state = position.state
        if state is None and position.pass_index == position.batches == 0:
            state = self._first_state
        if position == self._position and self._error is None:
            return
        if state is not None and self._restore_state(position, state):
            return
        if self.is_one_shot and position.pass_index == self._produced.pass_index:
            if position.batches < self._position.batches:
                raise LoaderError(
                    f"The {self.name!r} loader is an iterator behind batch "
                    f"{self._position.batches}; found batch {position.batches} as the position to "
                    "go back to. Pass a loader that can be iterated again, or one with "
                    "get_state() and set_state()."
                )
            self._to_skip += position.batches - self._position.batches
        else:
            self._ahead.clear()
            self._iterator = self._error = None
            self._ended = self._restored = False
            self._produced = LoaderPosition(position.pass_index)
            self._to_skip = position.batches
        self._position = position

    def _restore_state(self, position: LoaderPosition, state: JSON) -> bool:
        """Puts the loader into its own state; False where it has no ``set_state``."""
        loader = self.loader
        if self.is_one_shot and not isinstance(loader, StatefulLoader):
            return False
        self._open(position.pass_index)
        if self._owner is None:
            return False
        try:
            self._owner.set_state(state_from_json(state))
            if self._iterator is not self._owner:  # a loader with a state: iter() goes on from it
                self._iterator = iter(self.loader)
        except Exception as error:
            error.add_note(f"while restoring the position of the {self.name!r} loader")
            self._error = error  # it stands nowhere now; reading on would be silent
            raise
        self._ahead.clear()
        self._to_skip = 0
        self._restored = True
        self._position = self._produced = position
        return True

    def _open(self, pass_index: int) -> None:
        iterator = iter(self.loader)
        self._iterator = iterator
        candidates = (each for each in (iterator, self.loader) if isinstance(each, StatefulLoader))
        self._owner = next(candidates, None)
        self._ended = self._restored = False
        self._error = None
        state = self._read_state()
        if self._first_state is None and pass_index == 0:
            self._first_state = state
        self._produced = LoaderPosition(pass_index, 0, state)

    def _next_raw(self) -> BatchLike:
        """Returns the loader's next batch as it is."""
        if self._error is not None:
            raise self._error
        if self._iterator is None:
            self._open(self._position.pass_index)
            if self._position.batches == 0:
                self._position = self._produced
        if self._ended or self._iterator is None:
            raise StopIteration
        restored, self._restored = self._restored, False
        try:
            return next(self._iterator)
        except StopIteration:
            if restored and self._produced.batches == 0 and self._owner is self.loader:
                # The state was taken between two passes and still names the end of the old one.
                self._iterator = iter(self.loader)
                return self._next_raw()
            self._ended = True
            raise

    def _fast_forward(self) -> None:
        """Reads and drops the batches that a restored position lies behind."""
        count = self._to_skip
        order = ""
        if self._position.pass_index > 0 and not self.is_one_shot:
            order = f", taking a new iter() for pass {self._position.pass_index + 1}"
        _LOG.warning(
            "No saved state for the %r loader (it needs get_state() and set_state()): reading and "
            "dropping %d batches to get back to its position%s.", self.name, count, order,
        )  # fmt: skip
        start = time.perf_counter()
        while self._to_skip:
            try:
                self._drop_one()
            except StopIteration:
                done = count - self._to_skip
                raise LoaderError(
                    f"The {self.name!r} loader ended after {done} of the {count} batches before "
                    "its saved position. Use the data and the batch size of the run that saved it."
                ) from None
        seconds = time.perf_counter() - start
        _LOG.warning("Dropped %d batches of the %r loader in %.2f s.", count, self.name, seconds)

    def _drop_one(self) -> None:
        if self._ahead:
            self._ahead.popleft()
        else:
            self._next_raw()
            made = self._produced
            self._produced = LoaderPosition(made.pass_index, made.batches + 1)
        self._to_skip -= 1

    def _read_state(self) -> JSON:
        """Returns a snapshot of the state of the loader, None where it has none.

        Raises:
            LoaderError: If the state is not JSON.
        """
        if self._owner is None:
            return None
        try:
            state = self._owner.get_state()
        except NotImplementedError:  # the methods exist for the sake of an interface
            self._owner = None
            return None
        return state_to_json(state, self.name)

    def _check_reader(self, reader: object | None) -> None:
        if self._reader is not None and self._reader is not reader:
            raise LoaderError(
                f"The {self.name!r} loader is being read by {self._reader}, expected one reader at "
                "a time. Close that one first; a loader that hangs cannot be closed."
            )


def _way_out(loader: Any) -> str:
    """Returns what to do where something is no loader."""
    if callable(loader):
        return "Call it, if it returns one."
    if jax.tree.leaves(loader) != [loader]:
        return "One batch or a whole set of data goes into a list, or an ArrayLoader."
    return "Give it __iter__, or pass a list or a generator."

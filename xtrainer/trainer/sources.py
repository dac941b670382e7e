"""Whose loader is this, and where does it stand? One source per loader for a trainer's life."""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from xtrainer.data import LoaderPosition, LoaderSource, Phase
from xtrainer.errors import LoaderError
from xtrainer.launch import gather_results, process_count
from xtrainer.types import BatchLike, DataShard, ShardedLoader

_LOG = logging.getLogger(__name__)

_PHASES = {
    "train": Phase.TRAIN,
    "online": Phase.TRAIN,
    "test": Phase.TEST,
    "predict": Phase.PREDICT,
}
"""What the batches of a loader are for, by its name; else for a validation."""


class Sources:
    """The loaders in use, by name, each read through one :class:`LoaderSource`.

    Keeping the source keeps what was read ahead of an iterator, and the place in an endless loader,
    from one call of ``train_model`` to the next.

    Args:
        timeout_s: Seconds to wait for a batch at most; 0 or less: for ever.
        on_changed_data: See ``TrainerConfig``.

    Attributes:
        shard: Which part of every batch this process reads; loaders with ``set_shard`` are told.
        process: What is made of every batch on the host, for what it is for; None: nothing.
    """

    def __init__(
        self, timeout_s: float = 0.0, on_changed_data: Literal["stop", "warn"] = "stop"
    ) -> None:
        self.timeout_s = timeout_s
        self.on_changed_data = on_changed_data
        self._current: dict[str, LoaderSource] = {}
        self._waiting: dict[str, LoaderPosition] = {}
        self._data: Mapping[str, str] = {}
        self._saved_by = 1
        self.shard = DataShard()
        self.process: Callable[..., BatchLike] | None = None
        self._owned: tuple[object, object] = (None, None)  # who made a training loader, and that

    def of(self, loader: Iterable[BatchLike] | LoaderSource, name: str) -> LoaderSource:
        """Returns the source of a loader, put where a restored checkpoint says it was.

        Raises:
            LoaderError: If the loader cannot be iterated, its data are others than those of the
                saved position, or that is worth nothing for this number of processes.
            PeerError: If the data are others on another process.
        """
        if isinstance(loader, LoaderSource):
            return loader
        source = self._current.get(name)
        if source is None or source.loader is not loader:
            self._tell_shard(loader, name)
            source = self._current[name] = LoaderSource(loader, name)
            source.timeout_s = self.timeout_s
            if self.process is not None:
                phase = _PHASES.get(name.split("/")[0], Phase.VALIDATION)
                source.process = functools.partial(self.process, phase=phase)
        if name in self._waiting:
            self._check_processes(loader, name, self._saved_by)
            self._put(source, self._waiting.pop(name), self._data.get(name))
        return source

    def current(self, name: str) -> LoaderSource | None:
        """Returns the source of the newest loader of a name; None before there is one."""
        return self._current.get(name)

    def follow(self, loader: object, owner: object) -> None:
        """Lets a training loader go on where the one before it stands, if one object made both.

        What a checkpoint says, now or later, has precedence.

        Args:
            loader: The one that comes next.
            owner: Who has made it.
        """
        current, (before, made) = self._current.get("train"), self._owned
        self._owned = (owner, loader)
        if current is None or current.loader is loader or "train" in self._waiting:
            return
        if owner is before and current.loader is made:
            self.restore_later({"train": current.position}, process_count())

    def of_sets(self, loaders: Any, mode: str) -> dict[str | None, LoaderSource]:
        """Returns the sources of one set or of a dictionary of sets, by prefix."""
        if loaders is None:
            return {}
        if isinstance(loaders, Mapping):
            return {str(k): self.of(loader, f"{mode}/{k}") for k, loader in loaders.items()}
        return {None: self.of(loaders, mode)}

    def _check_processes(self, loader: Iterable[BatchLike], name: str, saved_by: int) -> None:
        if saved_by != process_count() and not isinstance(loader, ShardedLoader):
            raise LoaderError(
                f"The position of the {name!r} loader was saved by a run of {saved_by} processes, "
                f"and this one has {process_count()}: a loader without set_shard() "
                f"({type(loader).__name__}) has another share of the data now. Use as many "
                "processes, train with a loader that has set_shard(), or take the model alone "
                "(load_pretrained_model with load_optimizer=False)."
            )

    def _tell_shard(self, loader: Iterable[BatchLike], name: str) -> None:
        if self.shard.count == 1:
            return
        if isinstance(loader, ShardedLoader):
            loader.set_shard(self.shard)
        else:
            _LOG.info(
                "The %r loader (%s) has no set_shard(): it must give process part %d of %d.",
                name, type(loader).__name__, self.shard.index, self.shard.count,
            )  # fmt: skip

    def positions(self) -> dict[str, LoaderPosition]:
        """Returns where the training loader stands, and those whose position is their own state."""
        return {
            name: source.position
            for name, source in self._current.items()
            if name == "train" or source.position.state is not None
        }

    def fingerprints(self) -> dict[str, str]:
        """Returns what the loaders whose positions are saved say of their data, where they do."""
        said = {name: self._current[name].fingerprint for name in self.positions()}
        return {name: data for name, data in said.items() if data is not None}

    def restore_later(
        self,
        positions: Mapping[str, LoaderPosition],
        saved_by: int,
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps the training position for the loader that the next call brings.

        An evaluation begins a new pass; its position matters only to ``load_data_loaders``.

        Args:
            positions: By name.
            saved_by: How many processes the run had that saved them.
            data: The data that they are positions in, where that is known.
        """
        self._saved_by, self._data = saved_by, data or {}
        self._waiting = {n: position for n, position in positions.items() if n == "train"}

    def restore(
        self,
        loader: Iterable[BatchLike],
        name: str,
        position: LoaderPosition,
        saved_by: int,
        data: str | None = None,
    ) -> None:
        """Puts a loader where it was; what waits for a loader of that name is dropped.

        Raises:
            LoaderError: If the loader's data are others than those of the position, or that is
                worth nothing for this number of processes.
            PeerError: If the data are others on another process.
        """
        self._check_processes(loader, name, saved_by)
        self._waiting.pop(name, None)
        self._put(self.of(loader, name), position, data)

    def _put(self, source: LoaderSource, position: LoaderPosition, data: str | None) -> None:
        """Puts a loader where it was, in the data that it was in, or in others if they may be."""
        if data is None:
            source.restore(position)
            return
        # The fingerprint was known on all processes, or on none, so that all are in this.
        others = gather_results(lambda: self._is_changed(source, data), f"data of {source.name!r}")
        if not any(others):
            source.restore(position)
        elif any(gather_results(lambda: _refuses(source, position), f"place in {source.name!r}")):
            _LOG.warning("The %r loader begins with its first batch.", source.name)
            source.restore(LoaderPosition())

    def _is_changed(self, source: LoaderSource, data: str) -> bool:
        """Says whether a loader has other data.

        Raises:
            LoaderError: If it has, and may not.
        """
        found = source.fingerprint
        if found is None or found == data:
            return False
        text = (
            f"The data of the {source.name!r} loader have changed: found {found}, expected {data}, "
            "in which the checkpoint was saved."
        )
        if self.on_changed_data == "stop":
            raise LoaderError(
                f"{text} Use the data of that run, set TrainerConfig(on_changed_data='warn') to go "
                "on with these, or take the model alone (load_pretrained_model with "
                "load_optimizer=False)."
            )
        _LOG.warning("%s The run goes on with them.", text)
        return True


def _refuses(source: LoaderSource, position: LoaderPosition) -> bool:
    """Puts a loader with other data where it was; says whether there is no such place in them."""
    try:
        source.restore(position)
    except LoaderError as error:
        _LOG.warning("%s", error)
        return True
    return False

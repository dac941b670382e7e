"""Where does a loader stand? A few numbers that a checkpoint keeps as JSON."""

from dataclasses import dataclass

from xtrainer.errors import CheckpointError, LoaderError
from xtrainer.types import JSON

_FIELDS = ("pass_index", "batches", "state")


@dataclass(frozen=True)
class LoaderPosition:
    """The place behind the last batch that was used, not behind the last one that was read.

    Attributes:
        pass_index: How many passes over the loader were begun before this one.
        batches: How many batches of this pass were used.
        state: The loader's own state behind the last of them, None where it has none.

    Raises:
        LoaderError: If a count is not an integer >= 0.

    Example:
        >>> LoaderPosition.from_json(LoaderPosition(1, 7).to_json())
        LoaderPosition(pass_index=1, batches=7, state=None)
    """

    pass_index: int = 0
    batches: int = 0
    state: JSON = None

    def __post_init__(self) -> None:
        for name in ("pass_index", "batches"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise LoaderError(f"{name}: found {value!r}, expected an integer >= 0.")

    def after_one(self, state: JSON) -> "LoaderPosition":
        """Returns the place behind the next batch of the pass, behind which ``state`` was taken."""
        position = object.__new__(LoaderPosition)  # made for every batch; nothing to check
        position.__dict__.update(pass_index=self.pass_index, batches=self.batches + 1, state=state)
        return position

    def to_json(self) -> JSON:
        """Returns the position as a dict for ``json.dumps``."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_json(cls, data: JSON) -> "LoaderPosition":
        """Returns the position that ``to_json`` wrote.

        Raises:
            CheckpointError: If the data are not those of a position.
        """
        if not isinstance(data, dict) or set(data) != set(_FIELDS):
            found = sorted(map(str, data)) if isinstance(data, dict) else repr(data)
            raise CheckpointError(
                f"Found {found} as a loader position, expected the keys {list(_FIELDS)}. "
                "The checkpoint is damaged or not of this version; use another step."
            )
        try:
            return cls(**data)
        except LoaderError as error:
            raise CheckpointError(
                f"Found a loader position that cannot be: {error} The checkpoint is damaged; "
                "use another step."
            ) from error

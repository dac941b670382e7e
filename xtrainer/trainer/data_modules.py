"""What does a trainer do with a data module? It is set up for a phase, read, and taken down."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from xtrainer.data import DataModule, Phase
from xtrainer.errors import LoaderError
from xtrainer.launch import gather_results, is_main_process
from xtrainer.launch.exchange import allowing
from xtrainer.trainer.view import TrainerView

_WAIT_S = 86400.0
"""Seconds that processes wait for each other's data; one that has died is noticed before."""

_LOADERS = {
    Phase.TRAIN: ("train_loader", "val_loader", "test_loader"),
    Phase.VALIDATION: ("val_loader",),
    Phase.TEST: ("test_loader",),
    Phase.PREDICT: ("predict_loader",),
}
"""The loaders of a phase; the first of them is not to be done without."""

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def takes_data_module(phase: Phase) -> Callable[[MethodT], MethodT]:
    """Returns what lets a method of a trainer take a data module in place of its first loader.

    Loaders that are given besides are used instead of the module's.

    Args:
        phase: What the method does.
    """

    def decorate(method: MethodT) -> MethodT:
        signature = inspect.signature(method)
        first = list(signature.parameters)[1]

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            module = args[0] if args else kwargs.get(first)
            if not isinstance(module, DataModule):
                return method(self, *args, **kwargs)
            given = signature.bind(self, *args, **kwargs).arguments
            with phase_of(self, module, phase) as loaders:
                given[first] = loaders.pop(_LOADERS[phase][0])
                missing = [name for name in loaders if given.get(name) is None]
                return method(**given, **{name: loaders[name] for name in missing})

        return cast(MethodT, call)

    return decorate


@contextlib.contextmanager
def phase_of(trainer: TrainerView, module: DataModule, phase: Phase) -> Iterator[dict[str, Any]]:
    """Sets a data module up, gives its loaders by name, and takes it down, whatever happens.

    Raises:
        LoaderError: If the module has no loader for the phase.
        PeerError: If the module fails on another process.
        Exception: What the module raises on this one.
    """
    for callback in trainer.callbacks:
        callback.data_module = module
    _prepare(module)
    loaders: dict[str, Any] = {}
    try:
        with allowing(_WAIT_S):
            what = f"{type(module).__name__}.setup for {phase.value}"
            gather_results(lambda: loaders.update(_set_up(module, phase)), what)
        if phase is Phase.TRAIN:
            trainer.sources.follow(loaders["train_loader"], module)
        yield loaders
    except BaseException as error:
        _take_down_after(error, module, phase)
        raise
    module.teardown(phase)


def _prepare(module: DataModule) -> None:
    if not module.is_prepared:
        what = f"{type(module).__name__}.prepare_data"
        with allowing(_WAIT_S):
            gather_results(lambda: module.prepare_data() if is_main_process() else None, what)
        module.is_prepared = True


def _set_up(module: DataModule, phase: Phase) -> dict[str, Any]:
    module.setup(phase)
    names = _LOADERS[phase]
    loaders = {name: getattr(module, name)() for name in names}
    if loaders[names[0]] is None:
        raise LoaderError(
            f"{type(module).__name__}.{names[0]}() gave None, expected batches for the phase "
            f"{phase.value!r}. Define it so that it returns a loader."
        )
    return loaders


def _take_down_after(error: BaseException, module: DataModule, phase: Phase) -> None:
    try:
        module.teardown(phase)
    except Exception as second:
        error.add_note(f"While taking the data down: {type(second).__name__}: {second}")

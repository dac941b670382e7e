"""How does a loss call the model? ``apply``, bound to the state's mutable collections."""

from collections.abc import Mapping
from typing import Any

from xtrainer.parallel import constrain_module_outputs, rematerialize, stages_of
from xtrainer.step.precision import cast_floating
from xtrainer.step.settings import StepSettings
from xtrainer.types import ApplyFn


class BoundApply:
    """The ``apply_fn`` a loss function gets.

    It is the model's ``apply`` with three additions. A collection that is not passed is taken from
    the state. While training, collections the model updates (``batch_stats``) and, on request, sown
    ``intermediates`` are gathered by themselves when ``mutable=`` is not given; with ``mutable=``
    the call behaves as in Flax and the loss returns the updates itself. Floating arguments and
    outputs are cast as the precision asks.

    A loss that wraps ``apply_fn`` in a transformation of its own (``jax.checkpoint``, ``vmap``,
    ``scan``) passes ``mutable=`` and returns the updates: gathered values cannot leave one.

    Args:
        apply_fn: ``apply(variables, *args, **kwargs)``.
        collections: The state's mutable collections.
        settings: Precision, layout, whether intermediates are wanted.
        rows: Rows of the batch the loss is given.
        train: Whether updates are gathered.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        collections: Mapping[str, Any],
        settings: StepSettings,
        rows: int,
        train: bool,
    ) -> None:
        self._apply_fn = apply_fn
        self._settings = settings
        self._rows = rows
        self._train = train
        self._collections = dict(collections)
        self.gathered: dict[str, Any] = {}

    def __call__(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the model's outputs, or ``(outputs, updates)`` where ``mutable=`` is given."""
        precision = self._settings.precision
        variables = {**self._collections, **variables}
        if precision.casts:
            if "params" in variables:
                variables["params"] = cast_floating(variables["params"], precision.compute_dtype)
            args = cast_floating(args, precision.compute_dtype)
            kwargs = cast_floating(kwargs, precision.compute_dtype)
        gather = self._gathered_collections() if kwargs.get("mutable") is None else []
        if gather:
            kwargs = {**kwargs, "mutable": gather}
        # Without a gradient nothing is kept that could be computed again.
        remat = self._settings.remat if self._train else ()
        layout = self._settings.layout
        # The inner one is that which calls the modules, see rematerialize.
        again = rematerialize(remat, self._settings.remat_policy)
        with stages_of(layout), constrain_module_outputs(layout, self._rows), again:
            result = self._apply_fn(variables, *args, **kwargs)
        if gather:
            result, updates = result
            self.gathered.update(updates)
            carried = {name: updates[name] for name in updates if name in self._collections}
            self._collections.update(carried)
        if not precision.casts:
            return result
        if kwargs.get("mutable") and not gather:  # the updates keep their dtypes
            return cast_floating(result[0], precision.output_dtype), result[1]
        return cast_floating(result, precision.output_dtype)

    def _gathered_collections(self) -> list[str]:
        if not self._train:
            return []
        extra = ["intermediates"] if self._settings.log_intermediates else []
        return [*self._collections, *extra]

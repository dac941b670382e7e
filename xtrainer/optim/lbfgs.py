"""How does L-BFGS become an optimizer? A direction, and a line search in place of a rate."""

import dataclasses

import optax

from xtrainer.config import Config

LBFGS = "lbfgs"
_READ = frozenset(
    {"name", "freeze", "regularization", "memory_size", "max_linesearch_steps", "ema_decay"}
)
_HARMLESS = frozenset({"beta1", "beta2", "eps", "momentum", "nesterov", "kwargs"})
"""Not read by others either, or refused where they are not."""


def lbfgs_parts(
    memory_size: int, max_linesearch_steps: int
) -> tuple[tuple[str, optax.GradientTransformation], ...]:
    """Returns the named parts; together they give the updates of ``optax.lbfgs``.

    Args:
        memory_size: Updates that are remembered; of each, two copies of the parameters are kept.
        max_linesearch_steps: Evaluations of loss and gradient per update, beside the first.
    """
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps, initial_guess_strategy="one")
    return (
        ("optimizer", optax.scale_by_lbfgs(memory_size)),
        ("weight_decay", optax.identity()),
        ("learning_rate", optax.chain(optax.scale(-1.0), search)),
    )


def lbfgs_problems(config: Config) -> list[str]:
    """Returns the options of an optimizer's config by which the line search would be misled."""
    found = []
    for name in ("memory_size", "max_linesearch_steps"):
        if config.get(name) < 1:
            found.append(f"{name}: found {config.get(name)}, expected a number >= 1.")
    if config.get("name") != LBFGS:
        return found
    for field in dataclasses.fields(config):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = getattr(config, field.name)
        if field.name not in _READ | _HARMLESS and value != default:
            advice = "Use regularization" if field.name.startswith("weight_decay") else "Remove it"
            found.append(
                f"{field.name}: found {value!r} with name='lbfgs', whose line search decides how "
                f"far to go and must follow the gradient of the loss. {advice}."
            )
    return found

"""Is a metric better when it is small or when it is large? Its name tells, where it is known."""

import logging
import re
from typing import Literal

from xtrainer.launch import is_main_process

_LOG = logging.getLogger(__name__)

Direction = Literal["min", "max"]
"""Whether the best value of a metric is the smallest or the largest."""

DirectionMode = Literal["auto", "min", "max"]
"""A direction, or that of the metric's name."""

_SMALL = """
    loss cost error errors err error_rate perplexity ppl bits_per_byte bits_per_dim bits_per_char
    bits_per_token bpb bpd bpc nll negative_log_likelihood cross_entropy xent mae mse rmse mape
    squared_error absolute_error wer cer fid regret latency
""".split()
_LARGE = """
    accuracy acc balanced_acc f1 f1_score precision recall auc auroc roc_auc average_precision
    likelihood log_likelihood elbo iou miou dice bleu rouge meteor chrf r2 r2_score psnr ssim reward
    throughput mrr ndcg mcc specificity sensitivity correlation
""".split()
_BEST: dict[tuple[str, ...], Direction] = {
    **{tuple(name.split("_")): "min" for name in _SMALL},
    **{tuple(name.split("_")): "max" for name in _LARGE},
}
_PASSED_OVER = {"mean", "single", "max", "min", "sum", "top", "at", "k"}
_LONGEST = max(map(len, _BEST))


def better_when(name: str) -> Direction | None:
    """Returns whether a metric is better when it is small or large; None where that is not known.

    The last words of the name tell, so that a prefix for a set makes no difference; what a row of
    metrics adds (``_mean``), and numbers (``accuracy_top_5``), are passed over.

    Example:
        >>> better_when("val_b_loss"), better_when("train/accuracy_mean"), better_when("score")
        ('min', 'max', None)
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    while len(words) > 1 and (words[-1] in _PASSED_OVER or words[-1].isdecimal()):
        words.pop()
    for count in range(min(_LONGEST, len(words)), 0, -1):  # the longest name that fits
        if found := _BEST.get(tuple(words[-count:])):
            return found
    return None


def direction_of(mode: DirectionMode, name: str) -> Direction:
    """Returns the direction that was asked for; with ``"auto"`` that of the name, else ``"min"``.

    Example:
        >>> direction_of("auto", "accuracy"), direction_of("min", "accuracy")
        ('max', 'min')
    """
    return (better_when(name) or "min") if mode == "auto" else mode


def warn_of_unknown_direction(who: str, mode: DirectionMode, name: str) -> None:
    """Says that the smallest value is taken for the best where nobody knows; once per callback.

    Args:
        who: Monitors the metric.
        mode: What was asked for.
        name: Of the metric.
    """
    if mode == "auto" and better_when(name) is None and is_main_process():
        _LOG.warning(
            "%s monitors %r and takes the smallest value for the best, since nothing is known of "
            "this name. Set mode='min' or mode='max'.", who, name,
        )  # fmt: skip


def mode_problems(mode: str) -> list[str]:
    """Returns what is wrong with a mode."""
    if mode in ("auto", "min", "max"):
        return []
    return [f"mode: found {mode!r}, expected 'auto', 'min' or 'max'."]

"""How well do the last two bytes alone predict the next one? A smoothed trigram, in NumPy."""

import numpy as np

SYMBOLS = 256


class Trigram:
    """Byte trigram interpolated with bigram, unigram and uniform by Witten and Bell's rule.

    A context seen ``n`` times with ``t`` different successors leaves the share ``t / (n + t)`` to
    the next shorter context: nothing to tune, and no byte has probability 0.

    Args:
        stream: Training bytes.

    Example:
        >>> stream = np.frombuffer(b"abcabcabcabc", np.uint8)
        >>> Trigram(stream).bits_per_byte(stream, np.arange(2, 12)) < 1
        True
    """

    def __init__(self, stream: np.ndarray) -> None:
        symbols = stream.astype(np.int64)
        pairs = symbols[:-1] * SYMBOLS + symbols[1:]
        triples = pairs[:-1] * SYMBOLS + symbols[2:]
        self._counts = [_table(symbols, 0), _table(pairs, 1), _table(triples, 2)]
        self._totals = [table.sum(axis=1) for table in self._counts]
        self._kinds = [np.count_nonzero(table, axis=1) for table in self._counts]

    def probabilities(self, context: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the probability of each target after its two preceding bytes.

        Args:
            context: Preceding bytes, of shape ``[count, 2]``, the nearer one last.
            targets: The bytes that follow, of shape ``[count]``.
        """
        first, second = context.astype(np.int64).T
        rows = [np.zeros_like(second), second, first * SYMBOLS + second]
        lower = np.full(targets.shape, 1 / SYMBOLS)
        for counts, totals, kinds, row in zip(
            self._counts, self._totals, self._kinds, rows, strict=True
        ):
            seen = (counts[row, targets] + kinds[row] * lower) / np.maximum(
                totals[row] + kinds[row], 1
            )
            lower = np.where(totals[row] > 0, seen, lower)
        return lower

    def bits_per_byte(self, stream: np.ndarray, positions: np.ndarray) -> float:
        """Returns the mean of ``-log2 p`` over the bytes at ``positions``.

        The context is what stands before a byte in the stream, also across the windows in which
        the language model reads it: the trigram is never short of context.

        Args:
            stream: Bytes to predict.
            positions: Where to predict, as ``SequentialWindows.target_positions`` gives them.
        """
        padded = np.concatenate([np.zeros(2, np.uint8), stream])
        context = np.stack([padded[positions], padded[positions + 1]], axis=1)
        return float(-np.log2(self.probabilities(context, stream[positions])).mean())


def _table(indices: np.ndarray, context: int) -> np.ndarray:
    counts = np.bincount(indices, minlength=SYMBOLS ** (context + 1)).astype(np.int32)
    return counts.reshape(SYMBOLS**context, SYMBOLS)

"""Which paths does a pattern name? Globs and regular expressions, told apart or said outright."""

import fnmatch
import re

from xtrainer.tree import matches

REGEX, GLOB = "re:", "glob:"


def path_matches(pattern: str, path: str) -> bool:
    """Says whether a pattern names a path.

    ``glob:block_?/kernel`` is a glob of the whole path, ``re:block_[0-3]/`` a regular expression
    searched in it. Without a prefix the characters decide, as in :func:`xtrainer.tree.matches`:
    letters, digits, ``_ / - . ? [ ]`` and a ``*`` that does not follow a ``.`` make a glob.

    Example:
        >>> path_matches("*/kernel", "head/kernel"), path_matches("glob:head", "head/kernel")
        (True, False)
        >>> path_matches("re:^head", "head/kernel"), path_matches("(up|down)/kernel$", "up/kernel")
        (True, True)
    """
    if pattern.startswith(REGEX):
        return re.search(pattern.removeprefix(REGEX), path) is not None
    if pattern.startswith(GLOB):
        return fnmatch.fnmatchcase(path, pattern.removeprefix(GLOB))
    return matches(pattern, path)


def pattern_problem(pattern: str) -> str | None:
    """Returns what is wrong with a pattern, None where nothing is.

    Example:
        >>> pattern_problem("re:(kernel")
        "found the pattern 're:(kernel': missing ), unterminated subpattern at position 0."
    """
    if not pattern:
        return "found an empty pattern, expected a glob or a regular expression."
    try:
        path_matches(pattern, "")
    except re.error as error:
        return f"found the pattern {pattern!r}: {error}."
    return None

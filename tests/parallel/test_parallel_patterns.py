"""Does a pattern name the paths that its form promises?"""

import pytest

from xtrainer.parallel.patterns import path_matches, pattern_problem


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*/kernel", "block_0/up/kernel", True),
        ("*/kernel", "block_0/up/kernel_scale", False),
        ("head/kernel", "head/kernel", True),
        (r"block_\d+/(up|down)/kernel$", "block_12/down/kernel", True),
        ("glob:block_?/kernel", "block_1/kernel", True),
        ("glob:block_?/kernel", "block_12/kernel", False),
        ("glob:kernel", "head/kernel", False),
        ("re:kernel", "head/kernel", True),
        ("re:^kernel", "head/kernel", False),
        ("re:block_[0-3]*/", "block_12/kernel", True),
    ],
)
def test_a_pattern_is_a_glob_of_the_path_or_a_regex_in_it(
    pattern: str, path: str, expected: bool
) -> None:
    assert path_matches(pattern, path) == expected


def test_a_broken_regex_is_told_with_its_reason() -> None:
    assert pattern_problem("re:(up") == (
        "found the pattern 're:(up': missing ), unterminated subpattern at position 0."
    )
    assert pattern_problem("*(up") is not None
    assert pattern_problem("") is not None


def test_what_compiles_is_no_problem() -> None:
    assert [pattern_problem(p) for p in ("*", "glob:(", "re:a|b", "a/b")] == [None] * 4

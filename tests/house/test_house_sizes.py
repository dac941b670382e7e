"""Is everything short enough to be read, and named for what it is?"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES, METHOD_LINES = 400, 60, 15
SHAPELESS = {"utils", "util", "helpers", "helper", "common", "core", "misc"}
SOURCES = sorted(
    path for folder in ("xtrainer", "experiments") for path in (ROOT / folder).rglob("*.py")
)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the lines of a body without its docstring."""
    body = function.body
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        if isinstance(first.value.value, str):
            body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def size_faults(name: str, source: str) -> list[str]:
    """Returns a sentence for each thing in a source that is too long."""
    faults = []
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        faults.append(f"{name}: {lines} lines")
    tree = ast.parse(source)
    for function in functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > FUNCTION_LINES:
            faults.append(f"{name}: {function.name} has {length} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "TrainerModule":
            for method in (part for part in node.body if part in list(functions(node))):
                length = body_lines(method)  # type: ignore[arg-type]
                if length > METHOD_LINES:
                    faults.append(f"{name}: TrainerModule.{method.name} has {length} lines")  # type: ignore[union-attr]
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_methods_are_short(path: Path) -> None:
    assert size_faults(path.name, path.read_text(encoding="utf-8")) == []


def test_no_file_is_named_for_nothing() -> None:
    paths = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    names = {part for path in paths for part in path.relative_to(ROOT).with_suffix("").parts}
    assert names & SHAPELESS == set()


def statements(count: int, indent: str) -> str:
    return "".join(f"{indent}x = {i}\n" for i in range(count))


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        (statements(400, ""), 0),
        (statements(401, ""), 1),
        ("def f():\n" + statements(59, "    "), 0),
        ("def f():\n" + statements(60, "    "), 1),
        ("@a\n@b\ndef f():\n" + statements(59, "    "), 0),
        ("def g():\n    def f():\n" + statements(60, "        "), 2),
        ("async def f():\n" + statements(60, "    "), 1),
        ("class A:\n    def f(self):\n" + statements(16, "        "), 0),
        ("class TrainerModule:\n    def f(self):\n" + statements(16, "        "), 1),
        ("class TrainerModule:\n    def f(self):\n" + statements(15, "        "), 0),
        (
            'class TrainerModule:\n    def f(self):\n        """One.\n\n        Two.\n        """\n'
            + statements(15, "        "),
            0,
        ),
        ('class TrainerModule:\n    def f(self):\n        """Nothing."""\n', 0),
    ],
)
def test_what_is_too_long_is_found(source: str, faults: int) -> None:
    assert len(size_faults("planted.py", source)) == faults

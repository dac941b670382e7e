"""Do the notebooks run in a clean kernel, and do their stored outputs come from their source?

``python tests/notebooks/test_notebooks.py 1_first_model`` runs a page and stores what it says.
"""

import copy
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = "1_first_model"  # what the default run executes; the others are slow

MAX_BYTES = 150_000
MAX_TEXT = 4_000
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WARNS = "warns"
"""The tag of a cell that shows a warning, since that is what it is about."""
VARIES = "varies"
"""Tag of a cell whose text depends on the versions of JAX and XLA; only its kind is compared."""
DECIMAL = re.compile(r"(-?\d+\.\d+(?:e[+-]?\d+)?)")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|private|mnt|var)/\w")


ADVICE = re.compile(r".*% (?:of the run|of its time).*\n?")
"""What the ledger of a run says on a machine that is so slow that a page takes half a minute."""


class ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the tests, whatever is installed elsewhere."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher"]
        return KernelSpec(argv=[*command, "-f", "{connection_file}"], language="python")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output: Any) -> str:
    """Returns what an output says as text; nothing for a picture, whose text is its size."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return "" if "image/png" in data else data.get("text/plain", "")


def kind_of(output: Any) -> tuple[str, ...]:
    return (output.output_type, output.get("name", ""), *sorted(output.get("data", {})))


def alike(first: str, second: str) -> bool:
    """Says whether two texts are equal but for decimals, which may differ as those of two CPUs."""
    parts = [DECIMAL.split(re.sub(r"[ \t]+", " ", text).strip()) for text in (first, second)]
    if len(parts[0]) != len(parts[1]) or parts[0][::2] != parts[1][::2]:
        return False
    pairs = zip(parts[0][1::2], parts[1][1::2], strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.1, abs_tol=0.03) for a, b in pairs)


def without_advice(notebook: Any) -> Any:
    """Returns the notebook without what a slow machine has added to its outputs."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = ADVICE.sub("", output.text)
        cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text]
    return notebook


def differences(stored: Any, fresh: Any) -> list[str]:
    """Returns the source of each cell whose outputs are not those of the other notebook's."""
    found = []
    for old, new in zip(code_cells(stored), code_cells(fresh), strict=True):
        same = [kind_of(o) for o in old.outputs] == [kind_of(o) for o in new.outputs]
        if same and VARIES not in old.metadata.get("tags", ()):
            pairs = zip(old.outputs, new.outputs, strict=True)
            same = all(alike(text_of(a), text_of(b)) for a, b in pairs)
        if not same:
            shown = ["".join(text_of(o) for o in cell.outputs) for cell in (old, new)]
            found.append(f"{old.source}\nstored:\n{shown[0]}\nnow:\n{shown[1]}")
    return found


def faults(notebook: Any) -> list[str]:
    """Returns a sentence for each thing that a finished notebook should not have."""
    found = [] if notebook.metadata == METADATA else [f"metadata: {notebook.metadata}"]
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"execution counts: {counts}")
    for cell in notebook.cells:
        if set(cell.metadata) - {"tags"}:
            found.append(f"metadata of a cell: {cell.metadata}")
        if MACHINE_PATH.search(cell.source):
            found.append(f"a path of a machine: {cell.source}")
    for owner, output in ((cell, output) for cell in cells for output in cell.outputs):
        text = text_of(output)
        warns = output.get("name") == "stderr" and WARNS not in owner.metadata.get("tags", ())
        if output.output_type == "error" or warns:
            found.append(f"an error or a warning: {output}")
        if MACHINE_PATH.search(text):
            found.append(f"a path of a machine: {text}")
        if len(text) > MAX_TEXT:
            found.append(f"{len(text)} characters: {text[:80]}")
    return found


def execute(path: Path, folder: Path) -> Any:
    """Returns the notebook with the outputs of a run in a new kernel, in an empty folder.

    Raises:
        CellExecutionError: If a cell fails.
    """
    import matplotlib.font_manager  # noqa: F401  # where no fonts were listed yet it says so

    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    dropped = ("XLA_FLAGS", "MPLBACKEND")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython(), kernel_name="python3"),
        timeout=900,
        coalesce_streams=True,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel has written its version there
    for cell in code_cells(notebook):  # which of the two streams comes first is a race
        if WARNS in cell.metadata.get("tags", ()):
            cell.outputs.sort(key=lambda output: output.get("name", ""))
    return without_advice(notebook)


def write_anew(name: str) -> None:
    """Runs a page and stores it with what it said, and without what an editor left in it."""
    path = FOLDER / f"{name}.ipynb"
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder))
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.id = f"c{number:02d}"
    nbformat.write(notebook, path)


def executed() -> list[Any]:
    slow = pytest.mark.slow
    marks = {path: () if path.stem == QUICK else (slow,) for path in NOTEBOOKS}
    return [pytest.param(path, marks=marks[path], id=path.stem) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", executed())
def test_it_runs_in_a_clean_kernel_and_says_what_is_stored(path: Path, tmp_path: Path) -> None:
    fresh = execute(path, tmp_path)
    assert faults(fresh) == []
    assert differences(read(path), fresh) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_whole_clean_and_small(path: Path) -> None:
    assert faults(read(path)) == []
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_begins_with_its_number_and_its_links_lead_somewhere(path: Path) -> None:
    notebook = read(path)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert prose[0] == notebook.cells[0].source
    assert re.match(rf"# {path.stem[0]} · \w", prose[0])
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(prose))
    assert [name for name in linked if not (FOLDER / name).exists()] == []


def test_the_readme_of_the_folder_lists_all_of_them() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+\.ipynb)\)", text) == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) == 5


# The checks themselves.


@pytest.fixture
def notebook() -> Any:
    return copy.deepcopy(read(FOLDER / f"{QUICK}.ipynb"))


def first_text(notebook: Any) -> Any:
    """Returns the first output that is a stream."""
    outputs = (output for cell in code_cells(notebook) for output in cell.outputs)
    return next(output for output in outputs if output.output_type == "stream")


def test_an_output_of_another_source_is_found(notebook: Any) -> None:
    stored = copy.deepcopy(notebook)
    first_text(notebook).text = first_text(notebook).text.replace("batches", "rows")
    assert len(differences(stored, notebook)) == 1


def test_a_picture_that_is_missing_is_found(notebook: Any) -> None:
    stored = copy.deepcopy(notebook)
    code_cells(notebook)[0].outputs = []
    assert len(differences(stored, notebook)) == 1


def test_what_a_slow_machine_is_told_is_left_out(notebook: Any) -> None:
    stored = copy.deepcopy(notebook)
    advice = "ModelCheckpoint took 6.0 s, 11 % of the run. Make it faster.\n"
    first_text(notebook).text = advice + first_text(notebook).text
    warning = nbformat.v4.new_output("stream", name="stderr", text=advice)
    code_cells(notebook)[0].outputs.append(warning)
    assert differences(stored, without_advice(notebook)) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("accuracy 0.97", "accuracy  0.981\n", True),
        ("loss 1.0e-05", "loss 0.00001", True),
        ("accuracy 0.97", "accuracy 0.61", False),
        ("8 devices", "4 devices", False),
        ("True", "False", False),
        ("a 0.5", "a 0.5 0.5", False),
    ],
)
def test_decimals_alone_may_differ_a_little(first: str, second: str, expected: bool) -> None:
    assert alike(first, second) is expected


@pytest.mark.parametrize(
    "spoil",
    [
        lambda nb: nb.metadata.update(widgets={}),
        lambda nb: nb.cells[1].metadata.update(execution={}),
        lambda nb: code_cells(nb)[0].update(execution_count=7),
        lambda nb: first_text(nb).update(name="stderr"),
        lambda nb: first_text(nb).update(text="saved in /home/me/runs"),
        lambda nb: first_text(nb).update(text="step\n" * 1000),
        lambda nb: nb.cells[0].update(source="see /tmp/notes"),
    ],
)
def test_what_should_not_be_stored_is_found(notebook: Any, spoil: Any) -> None:
    spoil(notebook)
    assert len(faults(notebook)) == 1


if __name__ == "__main__":
    for page in sys.argv[1:] or [path.stem for path in NOTEBOOKS]:
        write_anew(page)

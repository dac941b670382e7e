"""What does a notebook keep of a run's progress? One output, with its last state."""

import sys
from typing import Any

import nbformat
import probes
import pytest
from nbclient import NotebookClient

import xtrainer as xt
from xtrainer.callbacks import ProgressBar
from xtrainer.callbacks.progress_facts import Facts
from xtrainer.callbacks.progress_views import NotebookView, in_notebook

# The display alone, in a kernel: a trainer would be compiled there anew.
CELL = """
import time, types
from xtrainer.callbacks import ProgressBar, ProgressBarConfig
from xtrainer.callbacks.progress_bar import tracked
from xtrainer.loggers import NullLogger
from xtrainer.state import Progress

trainer = types.SimpleNamespace(
    progress=Progress(batch_rows=4), total_steps=40, logger=NullLogger(),
    ledger=types.SimpleNamespace(now=lambda: ("step", time.perf_counter())),
)
bar = ProgressBar(ProgressBarConfig(min_interval_s=0.0), trainer)
bar.on_training_start()
for step in range(1, 41):
    time.sleep(0.06)
    trainer.progress.step = step
    bar.on_training_log({"loss_mean": 1 / step, "learning_rate": 0.1}, step)
bar.finalize("completed")
"""
EVALUATION = """
for _ in tracked(range(12), [], True, desc="val", total=12):
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def outputs() -> list[list[Any]]:
    """Returns what a kernel has stored of a run and of an evaluation."""
    cells = [nbformat.v4.new_code_cell(source) for source in (CELL, EVALUATION)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [cell["outputs"] for cell in notebook.cells]


def test_a_run_leaves_one_output_with_its_end(outputs: list[list[Any]]) -> None:
    (stored,) = outputs[0]
    assert stored["data"]["text/plain"].startswith("train: 100% 40/40 steps in ")
    assert "loss 0.025" in stored["data"]["text/html"]


def test_an_evaluation_leaves_nothing_to_see(outputs: list[list[Any]]) -> None:
    (stored,) = outputs[1]
    assert stored["data"] == {"text/plain": "", "text/html": ""}


def test_a_state_is_a_bar_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []
    view = NotebookView()
    monkeypatch.setattr(view, "_show", lambda *both: shown.append(both))
    view.draw(Facts(title="<val>", step=5, total=10, epoch=1, refused=1))
    plain, page = shown[0]
    assert plain.splitlines() == ["<val>:", "5/10, epoch 1", "1 refused step"]
    assert page.startswith('&lt;val&gt;: <progress value="5" max="10"')


def test_without_a_kernel_there_is_no_notebook() -> None:
    assert not in_notebook()


def test_a_kernel_is_known_by_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shell:
        kernel = object()

        @staticmethod
        def get_ipython() -> Any:
            return Shell

    monkeypatch.setitem(sys.modules, "IPython", Shell)
    assert in_notebook()
    monkeypatch.setattr(Shell, "kernel", None)  # IPython on a terminal
    assert not in_notebook()


def test_the_style_can_be_chosen(stage: probes.Repeatable) -> None:
    bar = ProgressBar(xt.ProgressBarConfig(style="notebook"), stage.begin())
    assert isinstance(bar._make_view(), NotebookView)

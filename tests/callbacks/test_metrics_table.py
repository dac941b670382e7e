"""What a person sees of an evaluation: every set's metrics side by side, its time, the best."""

import logging
import re
from pathlib import Path
from typing import Any

import probes
import pytest
from rich.console import Console

import xtrainer as xt
from xtrainer.callbacks.metrics_table import by_set, render
from xtrainer.errors import MetricError

VAL = probes.numbered(2, first=100)


class Texts(probes.Memory):
    """Keeps texts too, but for the summary at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, int, str]] = []

    def log_text(self, key: str, text: str, step: int) -> None:
        """Keeps a text."""
        if key != "training_summary":
            self.texts.append((key, step, text))


def telling(stage: probes.Repeatable, *callbacks: Any, **config: Any) -> tuple[Any, Texts]:
    """Returns a trainer with such a callback, and what it tells."""
    table = {key: config.pop(key) for key in ("metrics", "monitor", "mode") if key in config}
    trainer = stage.begin(*callbacks, xt.MetricsTableConfig(**table), **config)
    trainer.logger = Texts()
    return trainer, trainer.logger


def cells(text: str) -> dict[str, dict[str, str]]:
    """Returns the cells of a table by line and column."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().startswith("metric"))
    names = lines[start].split()[1:]
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith(" "):
            break
        metric, *values = re.sub(r" \*", "*", line).split()
        found[metric] = dict(zip(names, values, strict=True))
    return found


def score(*values: float) -> Any:
    """Returns what makes a callback that gives the n-th validation the n-th score."""
    left = list(values)
    add = lambda trainer, metrics, *_: metrics.update(score=left.pop(0))  # noqa: E731
    return probes.acting("on_validation_epoch_end", add)


# Without a run.


def test_metrics_are_divided_by_the_longest_name_that_fits() -> None:
    names = ["far", "far_off", None]
    metrics = {"far_loss": 1.0, "far_off_loss": 2.0, "loss": 3.0, "farther": 4.0}
    assert by_set(metrics, names, "val") == {
        "far": {"loss": 1.0},
        "far_off": {"loss": 2.0},
        "val": {"loss": 3.0, "farther": 4.0},
    }


def test_what_a_callback_adds_to_named_sets_stands_by_itself() -> None:
    assert by_set({"a_loss": 1.0, "score": 2.0}, ["a"], "val") == {
        "a": {"loss": 1.0},
        "val": {"score": 2.0},
    }


def test_a_table_is_plain_text_of_a_line_per_metric() -> None:
    columns = {"train": {"loss": 0.123456}, "[val]": {"loss": float("nan"), "top": 1234567.0}}
    text = render(columns, ["loss", "top"], marked=("[val]", "top"))
    assert cells(text) == {
        "loss": {"train": "0.1235", "[val]": "nan"},
        "top": {"train": "–", "[val]": "1.235e+06*"},
    }
    assert "\x1b" not in text


def test_in_a_notebook_it_is_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = render({"train": {"loss": 0.5}}, ["loss"])
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert render({"train": {"loss": 0.5}}, ["loss"]) == text


def test_many_sets_do_not_make_it_wider_than_a_console() -> None:
    columns = {f"a_long_name_of_set_{number}": {"loss": 0.5} for number in range(12)}
    assert max(map(len, render(columns, ["loss"]).splitlines())) <= Console(width=120).width


def test_a_mode_that_is_none_is_a_mistake() -> None:
    config = xt.MetricsTableConfig(mode="least")  # type: ignore[arg-type]
    assert config.problems() == ["mode: found 'least', expected 'auto', 'min' or 'max'."]


# In a run.


def test_each_validation_has_one_table_of_training_and_validation(
    stage: probes.Repeatable,
) -> None:
    trainer, logger = telling(stage, metrics=("loss", "id"))
    results = trainer.train_model(probes.numbered(4), VAL, num_epochs=2)
    assert [(key, step) for key, step, _ in logger.texts] == [("metrics", 4), ("metrics", 8)]
    for epoch, (_, _, text) in enumerate(logger.texts, start=1):
        ended, val = logger.rows("train_epoch")[epoch - 1][1], results[f"val_epoch_{epoch}"]
        assert cells(text) == {
            name: {"train": f"{ended[name]:.4g}", "val": f"{val[name]:.4g}"}
            for name in ("loss", "id")
        }
        assert text.startswith(f"epoch {epoch}, step {4 * epoch}, evaluated in ")


def test_within_an_epoch_it_has_the_newest_row_of_training(stage: probes.Repeatable) -> None:
    trainer, logger = telling(stage, every=2, check_val_every_n_steps=3, check_val_every_n_epoch=-1)
    trainer.train_model(probes.numbered(4), VAL, num_epochs=1)
    ((_, step, text),) = logger.texts
    row = dict(logger.rows())[2]
    assert step == 3 and cells(text)["loss"]["train"] == f"{row['loss_mean']:.4g}"


def test_named_sets_have_a_column_each(stage: probes.Repeatable) -> None:
    trainer, logger = telling(stage)
    sets = {"near": VAL, "far_off": probes.numbered(1, first=200)}
    results = trainer.train_model(probes.numbered(2), sets, num_epochs=1)
    found = cells(logger.texts[0][2])
    assert list(found["id"]) == ["train", "near", "far_off"]
    assert found["id"]["far_off"] == "200" == f"{results['val_epoch_1']['far_off_id']:.4g}"


def test_a_test_has_its_table(stage: probes.Repeatable) -> None:
    trainer, logger = telling(stage)
    trainer.train_model(probes.numbered(2), None, probes.numbered(1, first=300), num_epochs=1)
    ((key, step, text),) = logger.texts
    assert (key, step) == ("metrics", 2) and cells(text)["id"] == {"test": "300"}


@pytest.mark.parametrize(
    ("mode", "best"),
    [("min", ["2* 2 at step 1", "1* 1 at step 2", "nan 1 at step 2", "3 1 at step 2"]),
     ("max", ["2* 2 at step 1", "1 2 at step 1", "nan 2 at step 1", "3* 3 at step 4"])],
)  # fmt: skip
def test_the_best_value_is_marked_and_told(
    stage: probes.Repeatable, mode: str, best: list[str]
) -> None:
    scores = score(2.0, 1.0, float("nan"), 3.0)
    trainer, logger = telling(stage, scores, monitor="score", mode=mode)
    trainer.train_model(probes.numbered(1), VAL, num_epochs=4)
    assert [
        f"{cells(text)['score']['val']} {text.splitlines()[-1].removeprefix('best score: ')}"
        for _, _, text in logger.texts
    ] == best


def test_the_direction_of_a_known_name_needs_no_mode(stage: probes.Repeatable) -> None:
    accuracies = probes.acting(
        "on_validation_epoch_end",
        lambda self, metrics, epoch, step: metrics.update(accuracy=[0.5, 0.7, 0.6][epoch - 1]),
    )
    trainer, logger = telling(stage, accuracies, monitor="accuracy")
    trainer.train_model(probes.numbered(1), VAL, num_epochs=3)
    assert logger.texts[-1][2].splitlines()[-1] == "best accuracy: 0.7 at step 2"


def test_the_best_of_a_named_set_is_marked_in_its_column(stage: probes.Repeatable) -> None:
    trainer, logger = telling(stage, monitor="val/far_loss")
    trainer.train_model(probes.numbered(1), {"near": VAL, "far": VAL}, num_epochs=1)
    losses = cells(logger.texts[0][2])["loss"]
    assert losses["far"].endswith("*") and not losses["near"].endswith("*")


def test_a_metric_that_is_not_there_cannot_be_the_best(stage: probes.Repeatable) -> None:
    trainer, _ = telling(stage, monitor="near_los")
    with pytest.raises(MetricError, match="near_los.*step 1. Did you mean 'near_loss'"):
        trainer.train_model(probes.numbered(1), {"near": VAL}, num_epochs=1)


def test_what_was_best_is_known_after_a_resume(stage: probes.Repeatable, tmp_path: Path) -> None:
    checkpoint = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    trainer, _ = telling(stage, checkpoint, score(1.0), monitor="score")
    trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
    again, logger = telling(stage, checkpoint, score(2.0), monitor="score")
    again.train_model(probes.numbered(1), VAL, num_epochs=2)
    assert logger.texts[0][2].splitlines()[-1] == "best score: 1 at step 1"


def test_without_a_logger_the_program_s_own_log_has_it(
    stage: probes.Repeatable, caplog: pytest.LogCaptureFixture
) -> None:
    from xtrainer.loggers import NullLogger

    trainer = stage.begin(xt.MetricsTableConfig())
    trainer.logger = NullLogger()
    with caplog.at_level(logging.INFO, logger="xtrainer.callbacks.metrics_table"):
        trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
    assert "metrics at step 1:\nepoch 1, step 1, evaluated in" in caplog.text


def test_the_console_shows_it_once(
    stage: probes.Repeatable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = stage.begin(xt.MetricsTableConfig(), folder=tmp_path)
    trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
    assert capsys.readouterr().out.count("metrics at step 1:") == 1
    assert "evaluated in" in (tmp_path / "output_0.log").read_text()


def test_only_the_main_process_has_it_unless_asked() -> None:
    assert xt.MetricsTableConfig().main_process_only

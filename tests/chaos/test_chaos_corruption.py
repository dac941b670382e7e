"""Is every damage to a checkpoint found, and is the one before it taken instead?"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import damage
import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import (
    CheckpointItems,
    CheckpointManager,
    choose_usable,
    gather_meta,
)
from xtrainer.checkpoint.commit import COMMIT_FILE
from xtrainer.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    NoUsableCheckpointError,
)

SEED = 7
FLIPS = 300
STEPS = 3
SAVING = xt.ModelCheckpointConfig(every_n_steps=1, max_to_keep=None)


def new_trainer(folder: Path, width: int = 32) -> Any:
    """Returns a trainer of the run folder, with Adam and BatchNorm."""
    return probes.traced(
        model={"width": width, "batch_norm": True, "dropout": 0.3},
        logger=zoo.file_logger(folder),
        callbacks=[SAVING],
    )


def train(trainer: Any, steps: int = STEPS) -> None:
    trainer.train_model(probes.numbered(8), num_train_steps=steps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the steps 1, 2 and 3; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    train(new_trainer(folder))
    return folder


@pytest.fixture(scope="module")
def reader(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A trainer that reads a copy of the run again and again, and the copy's checkpoints."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    yield new_trainer(folder), folder / "checkpoints"


@pytest.fixture
def steps(whole: Path, tmp_path: Path) -> Path:
    """The checkpoints of a copy of the run."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints"


def test_every_damage_of_every_file_is_found(steps: Path) -> None:
    newest = steps / "3"
    missed, count = [], 0
    for path in damage.files_of(newest):
        for kind in damage.KINDS:
            with damage.damaged(path, kind, SEED) as changed:
                count += changed
                found = choose_usable(steps)
                seen = newest in found.damaged or damage.takes_away_the_step(path, kind)
                if changed and (found.folder != steps / "2" or not seen):
                    missed.append((path.name, kind))
    assert missed == []
    assert count > 4 * len(damage.files_of(newest))  # nothing but empty files was left alone
    assert choose_usable(steps) == (newest, {})


def test_every_single_bit_of_the_arrays_counts(steps: Path) -> None:
    draw = random.Random(SEED)
    files = [path for path in damage.files_of(steps / "3" / "state") if path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    missed = []
    for path in draw.choices(files, sizes, k=FLIPS):
        content = path.read_bytes()
        bit = draw.randrange(8 * len(content))
        path.write_bytes(damage.flipped(content, bit))
        found = choose_usable(steps)
        if found.folder != steps / "2" or list(found.damaged) != [steps / "3"]:
            missed.append((path.name, bit))
        path.write_bytes(content)
    assert missed == [], f"seed {SEED}"


def assert_falls_back(reader: tuple[Any, Path], path: Path, kind: str) -> None:
    """Fails unless a load takes the step before, and sets the damaged one aside."""
    trainer, steps = reader
    aside = steps / "corrupt-3"
    with damage.damaged(path, kind, SEED) as changed:
        if not changed:
            return
        assert trainer.load_model() == 2, (path, kind)
        assert trainer.global_step == int(trainer.state.step) == 2
        if damage.takes_away_the_step(path, kind):
            assert not aside.exists()
        else:
            assert aside.is_dir() and not (steps / "3").exists(), (path, kind)
            aside.rename(steps / "3")


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_load_falls_back_and_sets_the_damaged_step_aside(
    reader: tuple[Any, Path], kind: str
) -> None:
    trainer, steps = reader
    largest = max(damage.files_of(steps / "3" / "state"), key=lambda path: path.stat().st_size)
    for path in (largest, steps / "3" / "meta.json", steps / "3" / COMMIT_FILE):
        assert_falls_back(reader, path, kind)
    assert trainer.load_model() == 3


@pytest.mark.chaos
@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_load_falls_back_whichever_file_is_damaged(reader: tuple[Any, Path], kind: str) -> None:
    for path in damage.files_of(reader[1] / "3"):
        assert_falls_back(reader, path, kind)
    assert reader[0].load_model() == 3


def test_a_run_with_a_damaged_newest_step_ends_as_if_it_were_whole(
    whole: Path, steps: Path
) -> None:
    reference = new_trainer(steps.parent / "reference")
    train(reference, 5)
    largest = max(damage.files_of(steps / "3" / "state"), key=lambda path: path.stat().st_size)
    largest.write_bytes(damage.flipped(largest.read_bytes(), 8 * 40))
    again = new_trainer(steps.parent)
    train(again, 5)
    probes.assert_same_course(probes.learned(again), probes.learned(reference))
    assert zoo.rows_of(steps.parent, "train") == zoo.rows_of(steps.parent / "reference", "train")
    names = sorted(path.name for path in steps.iterdir())
    assert names == ["1", "2", "3", "4", "5", "RUN.json", "corrupt-3"]


@pytest.mark.parametrize("name", ["meta.json", COMMIT_FILE, "largest"])
def test_where_all_are_damaged_a_run_stops_and_changes_nothing(steps: Path, name: str) -> None:
    for step in ("1", "2", "3"):
        path = steps / step / name
        if name == "largest":
            path = max(damage.files_of(steps / step), key=lambda path: path.stat().st_size)
        path.write_bytes(damage.flipped(path.read_bytes(), 801))
    before = zoo.files_in(steps)
    trainer = new_trainer(steps.parent)
    start = zoo.host(trainer.state)
    for attempt in (lambda: train(trainer), trainer.load_model, lambda: choose_usable(steps)):
        with pytest.raises(NoUsableCheckpointError, match="Nothing was changed"):
            attempt()
        assert zoo.files_in(steps) == before
    zoo.assert_same(trainer.state, start)
    with pytest.raises(CheckpointCorruptError):
        choose_usable(steps, 3)


def test_what_only_looks_like_a_step_is_passed_over(steps: Path) -> None:
    (steps / "9").mkdir()
    shutil.copytree(steps / "3", steps / "8", ignore=lambda *_: {COMMIT_FILE})
    (steps / "7").symlink_to(steps / "3", target_is_directory=True)
    (steps / "4").write_text("notes")
    for name in ("005", "-6", "notes", "3.old", "٣"):
        shutil.copytree(steps / "3", steps / name)
    before = zoo.files_in(steps)
    assert choose_usable(steps) == (steps / "3", {})
    trainer = new_trainer(steps.parent)
    assert trainer.load_model() == 3
    assert zoo.files_in(steps) == before


def test_a_step_that_was_only_half_copied_is_not_taken(steps: Path) -> None:
    for path in damage.files_of(steps / "3"):
        shutil.copytree(steps / "3", steps / "8")
        (steps / "8" / path.relative_to(steps / "3")).unlink()
        assert choose_usable(steps).folder == steps / "3", path
        shutil.rmtree(steps / "8")


def test_a_link_in_place_of_a_file_is_a_damage(steps: Path) -> None:
    for path in damage.files_of(steps / "3"):
        elsewhere = steps.parent / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        assert choose_usable(steps).folder == steps / "2", path
        path.unlink()
        elsewhere.rename(path)
    assert choose_usable(steps).folder == steps / "3"


def test_a_file_that_was_added_among_the_arrays_is_a_damage(steps: Path) -> None:
    (steps / "3" / "state" / "d" / "added").write_bytes(b"x")
    assert choose_usable(steps).folder == steps / "2"


@pytest.mark.parametrize("source", ["another step", "a copy of the step", "another run"])
def test_a_record_that_belongs_elsewhere_is_refused(
    steps: Path, tmp_path_factory: pytest.TempPathFactory, source: str
) -> None:
    newest = steps / "3"
    if source == "another step":
        shutil.copy(steps / "2" / COMMIT_FILE, newest / COMMIT_FILE)
    elif source == "a copy of the step":
        newest = steps / "4"
        shutil.copytree(steps / "3", newest)
    else:
        other = tmp_path_factory.mktemp("other")
        train(new_trainer(other))
        shutil.rmtree(newest)
        shutil.copytree(other / "checkpoints" / "3", newest)
    found = choose_usable(steps)
    assert list(found.damaged) == [newest]
    assert "record of step" in str(found.damaged) or "written by the run" in str(found.damaged)
    trainer = new_trainer(steps.parent)
    assert trainer.load_model() == int(found.folder.name)
    assert (steps / f"corrupt-{newest.name}").is_dir()


def test_a_record_that_was_written_anew_by_hand_is_refused(steps: Path) -> None:
    record = steps / "3" / COMMIT_FILE
    for key in ("step", "run_id", "files", "fingerprints", "format_version"):
        content = json.loads(record.read_text())
        text = record.read_bytes()
        content[key] = {"step": 2, "format_version": 1}.get(key, type(content[key])())
        record.write_text(json.dumps(content))
        assert choose_usable(steps).folder == steps / "2", key
        record.write_bytes(text)


def test_a_metric_nobody_ranks_by_any_more_costs_no_checkpoint(steps: Path) -> None:
    for content in (b"", b"{", b'{"metric": "x"}', b"[]", bytes(range(256))):
        (steps / "3" / "rank.json").write_bytes(content)
        assert choose_usable(steps) == (steps / "3", {})
    again = new_trainer(steps.parent)
    train(again, 4)
    assert again.global_step == 4
    assert (steps / "4").is_dir()


def test_a_folder_without_checkpoints_is_not_one_with_damaged_ones(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / "3")
    with pytest.raises(CheckpointNotFoundError):
        choose_usable(tmp_path)
    trainer = new_trainer(tmp_path, width=4)
    train(trainer, 2)
    assert np.isfinite(zoo.rows_of(tmp_path, "train")[2]["loss_mean"])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path: Path, mode: Any) -> None:
    metrics = [2.0, float("nan"), 1.0, float("inf"), 3.0, float("nan"), -float("inf"), 2.0]
    state = {"w": jnp.arange(8.0)}
    parts = ("progress", "loaders", "callbacks", "config", "batch_spec", "metrics")
    meta = gather_meta(state, mesh=zoo.devices(1), **{part: {} for part in parts})
    with CheckpointManager(tmp_path / "steps", 1, mode) as manager:
        for step, metric in enumerate(metrics):
            manager.save(step, CheckpointItems(state, meta), metric)
        manager.wait()
        assert manager.best_step() == (2 if mode == "min" else 4)
        assert manager.all_steps() == sorted({manager.best_step() or 0, 6, 7})
    assert choose_usable(tmp_path / "steps", "best").folder.name == str(manager.best_step())

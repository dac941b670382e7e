"""Which steps a folder holds, and what they say of themselves."""

import json
import shutil

import pytest

from xtrainer.checkpoint import CheckpointManager, find_step, list_steps, read_meta, read_metric
from xtrainer.checkpoint.metadata import best_of, steps_to_keep
from xtrainer.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError

NAN, INF = float("nan"), float("inf")


def edit_meta(kit, step_folder, **changes):
    path = step_folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    kit.reseal(step_folder)


def test_steps_are_listed_in_numerical_order(save_steps):
    assert list_steps(save_steps({2: None, 9: None, 10: None})) == [2, 9, 10]


def test_a_folder_that_is_not_there_holds_no_steps(tmp_path):
    assert list_steps(tmp_path / "nowhere") == []


def test_only_committed_folders_with_plain_numbers_are_steps(save_steps, tmp_path):
    folder = save_steps({4: None})
    for name in ("005", "-6", "7.tmp", "notes", "\u0669"):
        shutil.copytree(folder / "4", folder / name)
    (folder / "8").mkdir()
    (folder / "9").write_text("a file")
    (folder / "10").symlink_to(folder / "4")
    assert list_steps(folder) == [4]


@pytest.mark.parametrize("lost", ["COMMIT.json", "meta.json", "state", "state/manifest.ocdbt"])
def test_a_copy_that_stopped_half_way_is_no_step(save_steps, lost):
    folder = save_steps({4: None, 5: None})
    path = folder / "5" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert list_steps(folder) == [4]


def test_meta_comes_back_as_it_was_saved(save_steps, small):
    meta = read_meta(save_steps({4: 0.25}, monitor_mode="min") / "4")
    assert {key: meta[key] for key in small.meta} == small.meta
    assert (meta["step"], meta["metric"], meta["monitor_mode"]) == (4, 0.25, "min")


def test_reading_meta_of_no_step_says_what_is_there(save_steps):
    folder = save_steps({4: None})
    (folder / "5").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="4, 5, RUN.json; its committed steps: 4"):
        read_meta(folder / "5")


@pytest.mark.parametrize("damage", [b"", b'{"progress": ', b"\xff\xfe", b"[" * 100_000])
def test_damaged_meta_is_one_clear_error(save_steps, kit, damage):
    step_folder = save_steps({4: None}) / "4"
    (step_folder / "meta.json").write_bytes(damage)
    with pytest.raises(CheckpointCorruptError, match="found a damaged checkpoint: meta.json has"):
        read_meta(step_folder)
    kit.reseal(step_folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_meta(step_folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"progress": 1}'])
def test_meta_that_is_something_else_is_refused(save_steps, kit, content):
    step_folder = save_steps({4: None}) / "4"
    (step_folder / "meta.json").write_text(content)
    kit.reseal(step_folder)
    with pytest.raises(CheckpointError, match="expected all of it"):
        read_meta(step_folder)


def test_a_metric_that_is_no_number_is_refused(save_steps, kit):
    step_folder = save_steps({4: 0.5}, monitor_mode="min") / "4"
    edit_meta(kit, step_folder, metric=[1])
    with pytest.raises(CheckpointError, match="metric: found"):
        read_metric(step_folder)


def test_a_metric_of_the_other_mode_counts_as_none(save_steps):
    step_folder = save_steps({4: 0.5}, monitor_mode="min") / "4"
    assert read_metric(step_folder, "min") == 0.5
    assert read_metric(step_folder, "max") is None


@pytest.mark.parametrize(
    ("metrics", "mode", "expected"),
    [
        ({1: 3.0, 2: 1.0, 3: 2.0}, "min", [2, 3, 1]),
        ({1: 3.0, 2: 1.0, 3: 2.0}, "max", [1, 3, 2]),
        ({1: NAN, 2: INF, 3: -INF, 4: None}, "min", []),
        ({1: NAN, 2: INF, 3: -INF, 4: None}, "max", []),
        ({1: 1.0, 2: 1.0}, "max", [1, 2]),
        ({1: 1.0}, None, []),
    ],
)
def test_only_finite_metrics_rank(metrics, mode, expected):
    assert best_of(metrics, mode) == expected


@pytest.mark.parametrize(
    ("metrics", "max_to_keep", "mode", "kept"),
    [
        ({1: 5.0, 2: 1.0, 3: 4.0}, None, "min", {1, 2, 3}),
        ({1: 5.0, 2: 1.0, 3: 4.0}, 1, "min", {2, 3}),  # the newest besides the best
        ({1: 5.0, 2: 1.0, 3: 4.0}, 1, "max", {1, 2, 3}),  # the newest two
        ({1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0}, 1, "max", {1, 3, 4}),
        ({1: 5.0, 2: 1.0, 3: NAN}, 1, "min", {2, 3}),  # NaN is newest, not best
        ({1: 0.5, 2: NAN, 3: NAN, 4: NAN}, 2, "min", {1, 3, 4}),  # NaN evicts no finite one
        ({1: 0.5, 2: -INF, 3: 0.4, 4: 0.6}, 2, "min", {1, 3, 4}),
        ({1: None, 2: None, 3: None}, 2, "min", {2, 3}),
        ({1: 0.1, 2: 0.2, 3: 0.3}, 2, None, {2, 3}),
        ({}, 2, "min", set()),
    ],
)
def test_retention_keeps_the_newest_and_the_best(metrics, max_to_keep, mode, kept):
    assert steps_to_keep(metrics, max_to_keep, mode) == kept


def test_a_step_is_found_from_run_checkpoints_and_step_folder(save_steps, tmp_path):
    checkpoints = save_steps({1: 0.1, 2: 0.2}, tmp_path / "run" / "checkpoints", monitor_mode="min")
    for start in (tmp_path / "run", checkpoints):
        assert find_step(start) == checkpoints / "2"
        assert find_step(start, "best") == checkpoints / "1"
        assert find_step(start, 1) == checkpoints / "1"
    for idx in ("latest", "best", 2):
        assert find_step(checkpoints / "2", idx) == checkpoints / "2"


def test_best_on_disk_follows_the_mode_of_the_run(save_steps):
    assert find_step(save_steps({1: 0.1, 2: NAN, 3: 0.3}, monitor_mode="max"), "best").name == "3"


def test_best_on_disk_passes_over_an_unreadable_step(save_steps):
    folder = save_steps({1: 0.1, 2: 0.2, 3: 0.0}, monitor_mode="min")
    (folder / "3" / "meta.json").write_text("{")
    assert find_step(folder, "best").name == "1"


@pytest.mark.parametrize("metric", [None, NAN])
def test_best_without_a_finite_metric_is_an_error_not_the_latest(save_steps, metric):
    folder = save_steps({1: metric, 2: metric}, monitor_mode="min")
    with pytest.raises(CheckpointNotFoundError, match="no step with a finite .* among 1, 2"):
        find_step(folder, "best")


def test_a_step_that_is_not_there_is_an_error_that_lists_the_steps(save_steps):
    folder = save_steps({1: None, 2: None})
    with pytest.raises(CheckpointNotFoundError, match="no step 3, expected one of 1, 2"):
        find_step(folder, 3)


def test_another_number_than_the_step_folder_has_is_an_error(save_steps):
    folder = save_steps({1: None, 2: None})
    with pytest.raises(CheckpointNotFoundError, match="found step 1, expected step 2"):
        find_step(folder / "1", 2)


def test_a_folder_without_steps_is_an_error_that_lists_what_is_there(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"holds: metrics.jsonl; .* steps: none"):
        find_step(tmp_path)


@pytest.mark.parametrize(("make", "said"), [(None, "is not there"), ("file", "is a file")])
def test_no_folder_is_an_error_that_says_so(tmp_path, make, said):
    if make:
        (tmp_path / "run").touch()
    with pytest.raises(CheckpointNotFoundError, match=said):
        find_step(tmp_path / "run")


@pytest.mark.parametrize("step_idx", ["newest", None, True, 1.0])
def test_an_unknown_way_to_name_a_step_is_an_error(tmp_path, step_idx):
    with pytest.raises(CheckpointError, match="expected a step, 'best' or 'latest'"):
        find_step(tmp_path, step_idx)


def test_finding_and_reading_changes_nothing(save_steps, kit, tmp_path):
    folder = save_steps({1: 0.1, 2: 0.2}, tmp_path / "run" / "checkpoints", monitor_mode="min")
    (folder / "3").mkdir()  # what a writing manager would clear away
    before = kit.tree_of(tmp_path)
    list_steps(folder)
    read_meta(find_step(tmp_path / "run", "best"))
    read_metric(folder / "2")
    assert kit.tree_of(tmp_path) == before


def test_steps_written_later_are_seen(save_steps, small, tmp_path):
    save_steps({1: None})
    with CheckpointManager(tmp_path) as manager:
        manager.save(2, small)
    assert list_steps(tmp_path) == [1, 2]

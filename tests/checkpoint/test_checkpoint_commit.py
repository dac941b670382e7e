"""What makes a folder a checkpoint, and what is told of one that is none."""

import json
import os
import shutil
from pathlib import Path

import crc32c
import pytest

from xtrainer.checkpoint import CheckpointManager, choose_usable, list_steps, restore_state
from xtrainer.checkpoint.commit import (
    COMMIT_FILE,
    RUN_FILE,
    begin_attempt,
    problems_of,
    quick_problems,
    read_commit,
    read_json,
)
from xtrainer.errors import CheckpointError, NewerFormatError


@pytest.fixture
def steps(save_steps) -> Path:
    """Gives a folder with the steps 1 and 2."""
    return save_steps({1: 0.1, 2: 0.2}, monitor_mode="min")


def rewrite(step_folder: Path, checksum: bool = True, **changes) -> None:
    """Changes the record of a step, with a checksum that is right or that was."""
    path = step_folder / COMMIT_FILE
    record = {**json.loads(path.read_text()), **changes}
    if checksum:
        del record["crc32c"]
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        record["crc32c"] = crc32c.crc32c(text.encode())
    path.write_text(json.dumps(record))


def test_the_record_names_every_file_with_size_and_checksum(steps):
    commit = read_commit(steps / "2")
    found = {p.relative_to(steps / "2").as_posix() for p in (steps / "2").rglob("*") if p.is_file()}
    assert set(commit.files) == found - {COMMIT_FILE}
    for name, (size, checksum) in commit.files.items():
        content = (steps / "2" / name).read_bytes()
        assert (size, checksum) == (len(content), crc32c.crc32c(content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "more than 100 levels"),
        ('{"step": 1, "step": 2}', "the key 'step' is there twice"),
        ('{"step": NaN}', "found NaN, which is not JSON"),
        ('{"step": 1e999}', "more than a float can be"),
        ('{"step": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("[1]", "no object"),
    ],
)
def test_a_file_of_what_was_not_written_is_refused(tmp_path, text, message):
    path = tmp_path / RUN_FILE
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"RUN.json cannot be read .*{message}"):
        read_json(path)


def test_the_record_names_step_run_attempt_and_the_values_of_each_leaf(steps, small):
    commits = [read_commit(steps / name) for name in ("1", "2")]
    assert [commit.step for commit in commits] == [1, 2]
    assert len({commit.run_id for commit in commits}) == 1
    assert {commit.attempt for commit in commits} == {1}
    assert commits[0].fingerprints.keys() == small.meta["leaves"].keys()
    with CheckpointManager(steps) as manager:
        manager.save(3, small)
    assert read_commit(steps / "3").attempt == 2
    assert read_commit(steps / "3").run_id == commits[0].run_id


def test_the_run_is_known_by_its_steps_where_its_file_is_lost(steps):
    run_id = read_commit(steps / "1").run_id
    (steps / RUN_FILE).unlink()
    assert (begin_attempt(steps).run_id, begin_attempt(steps).attempt) == (run_id, 3)
    (steps / RUN_FILE).write_text("{")
    assert begin_attempt(steps).run_id == run_id


def test_a_whole_step_has_no_problems(steps):
    assert quick_problems(steps / "2") == problems_of(steps / "2") == []


@pytest.mark.parametrize("name", ["meta.json", "state/manifest.ocdbt", "state/_METADATA"])
def test_what_sizes_tell_is_told_quickly(steps, name):
    os.truncate(steps / "2" / name, 3)
    (problem,) = quick_problems(steps / "2")
    assert problem.startswith(f"{name} has 3 bytes, expected")
    assert list_steps(steps) == [1]


def test_what_sizes_do_not_tell_the_checksum_tells(steps):
    path = steps / "2" / "meta.json"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    assert quick_problems(steps / "2") == []
    assert problems_of(steps / "2") == ["meta.json is damaged"]


def test_a_file_more_among_the_arrays_is_a_problem_and_elsewhere_none(steps):
    (steps / "2" / ".DS_Store").touch()
    assert problems_of(steps / "2") == []
    (steps / "2" / "state" / "d" / "more").touch()
    assert problems_of(steps / "2") == ["state/d/more was not there when it was saved"]


def test_a_link_is_no_file_of_a_checkpoint(steps, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "meta.json"
    shutil.move(steps / "2" / "meta.json", elsewhere)
    (steps / "2" / "meta.json").symlink_to(elsewhere)
    assert quick_problems(steps / "2")[0].startswith("meta.json has None bytes")
    shutil.rmtree(steps / "1" / "state" / "d")
    (steps / "1" / "state" / "d").symlink_to(steps / "2" / "state" / "d")
    assert quick_problems(steps / "1")
    assert list_steps(steps) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 10**5, b"{}"])
def test_a_record_that_is_none_is_told(steps, content):
    (steps / "2" / COMMIT_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=COMMIT_FILE):
        read_commit(steps / "2")
    assert list_steps(steps) == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "2"}, {"files": []}, {"files": {"meta.json": 3}}, {"surprise": 1},
        {"files": {"../../escape": [1, 2]}}, {"files": {"/etc/passwd": [1, 2]}},
    ],
)  # fmt: skip
def test_a_record_of_something_else_is_refused(steps, changes):
    rewrite(steps / "2", **changes)
    assert quick_problems(steps / "2")
    assert list_steps(steps) == [1]


def test_a_changed_record_is_found_by_its_checksum(steps):
    rewrite(steps / "2", checksum=False, attempt=7)
    assert "its checksum does not match" in quick_problems(steps / "2")[0]


def test_the_record_of_another_step_is_refused(steps):
    shutil.copy(steps / "1" / COMMIT_FILE, steps / "2" / COMMIT_FILE)
    assert "it is the record of step 1" in quick_problems(steps / "2")


def test_a_step_of_another_run_is_refused(steps, save_steps, tmp_path):
    other = save_steps({3: None}, tmp_path / "other")
    shutil.copytree(other / "3", steps / "3")
    assert "it was written by the run" in quick_problems(steps / "3")[0]
    assert choose_usable(steps).folder.name == "2"


def test_a_step_that_was_copied_by_itself_is_one(steps, tmp_path):
    shutil.copytree(steps / "2", tmp_path / "alone" / "2")
    assert choose_usable(tmp_path / "alone" / "2").folder.name == "2"


def test_a_newer_format_is_refused_and_not_taken_for_damage(steps):
    rewrite(steps / "2", format_version=3)
    for look in (list_steps, choose_usable):
        with pytest.raises(NewerFormatError, match="format_version 3, expected at most 2"):
            look(steps)


def test_values_that_are_not_those_of_the_save_are_seen_though_files_are_whole(kit, run_folder):
    folder = run_folder / "checkpoints" / "7"
    template = kit.template(kit.mesh(8))
    restore_state(folder, template)
    wrong = {path: "0" * 16 for path in read_commit(folder).fingerprints}
    text = (folder / COMMIT_FILE).read_text()
    rewrite(folder, fingerprints=wrong)
    try:
        with pytest.raises(CheckpointError, match="are not those that were saved") as caught:
            restore_state(folder, template)
    finally:
        (folder / COMMIT_FILE).write_text(text)
    assert "params/dense/kernel" in str(caught.value)

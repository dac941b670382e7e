"""What is asked of Ray, and which mistakes are found before it is touched."""

import os
from typing import Any

import pytest

from xtrainer.launch.ray_request import RayRequest


def job(width: int, depth: int = 1) -> int:
    return width * depth


def request(**changes: Any) -> RayRequest:
    given: dict[str, Any] = {
        "fn": job,
        "num_workers": 2,
        "resources": None,
        "kwargs": {"width": 2},
        "use_gpu": False,
        "jax_platform": None,
        "env_vars": {},
        "storage_path": None,
        "name": None,
        "max_failures": 0,
        "start_attempts": 10,
        "on_report": None,
        "scaling_options": {},
    }
    return RayRequest(**{**given, **changes})


def test_a_plain_request_has_no_mistakes():
    assert request().problems() == []
    assert request(max_failures=-1, start_attempts=-1).problems() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fn": 3}, "fn: found 3, expected a function"),
        ({"kwargs": {}}, "kwargs: found .*missing a required argument: 'width'"),
        ({"kwargs": {"width": 1, "hight": 2}}, "unexpected keyword argument 'hight'"),
        ({"num_workers": 0}, "num_workers: found 0, expected a whole number >= 1"),
        ({"num_workers": True}, "num_workers: found True"),
        ({"num_workers": 2.0}, "num_workers: found 2.0"),
        ({"max_failures": -2}, "max_failures: found -2, .* >= 0, or -1 for any number"),
        ({"start_attempts": 0}, "start_attempts: found 0, .* >= 1, or -1"),
        ({"resources": ["CPU"]}, "resources: found .*expected amounts by name"),
        ({"resources": {"CPU": 0}}, "resources.'CPU'.: found 0, expected a number > 0"),
        ({"resources": {"CPU": float("nan")}}, "found nan"),
        ({"resources": {"GPU": 0.5}}, "found 0.5, expected a whole number: JAX takes whole"),
        ({"jax_platform": "cud"}, "jax_platform: found 'cud'.*Did you mean 'cuda'"),
        ({"jax_platform": "rocm"}, "expected one that Ray can start"),
        ({"jax_platform": "cpu", "use_gpu": True}, "found 'cpu', but a GPU for each worker"),
        ({"jax_platform": "tpu", "resources": {"GPU": 1}}, "found 'tpu', but a GPU"),
        ({"resources": {"GPU": 1, "TPU": 4}}, "found 'cuda', but a TPU"),
        ({"env_vars": {"A": 1}}, "env_vars.'A'.: found 1, expected a text"),
        ({"env_vars": {"JAX_PLATFORMS": "cpu"}}, "which jax_platform sets"),
        ({"name": "a/b"}, "name: found 'a/b', expected the name of a folder"),
        ({"name": ""}, "name: found ''"),
        ({"on_report": 3}, "on_report: found 3, expected a function"),
        ({"scaling_options": {"use_gpu": True}}, "scaling_options: found use_gpu, which run"),
    ],
)
def test_a_mistake_is_named(changes, message):
    found = request(**changes).problems()
    assert len(found) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(found[0])


def test_all_mistakes_are_told_together():
    wrong = request(num_workers=0, max_failures=-5, name="a/b", env_vars={"A": 1})
    assert len(wrong.problems()) == 4


@pytest.mark.parametrize(
    ("changes", "platform", "jax_platforms"),
    [
        ({}, "cpu", "cpu"),
        ({"use_gpu": True}, "cuda", "cuda,cpu"),
        ({"jax_platform": "gpu"}, "cuda", "cuda,cpu"),
        ({"resources": {"GPU": 8}}, "cuda", "cuda,cpu"),
        ({"resources": {"TPU": 4}}, "tpu", "tpu,cpu"),
        ({"scaling_options": {"topology": "4x4"}}, "tpu", "tpu,cpu"),
    ],
)
def test_the_platform_is_given_or_implied(changes, platform, jax_platforms):
    asked = request(env_vars={"A": "b"}, **changes)
    assert asked.platform == platform
    assert asked.environ() == {"A": "b", "JAX_PLATFORMS": jax_platforms}


@pytest.mark.parametrize(
    ("changes", "resources"),
    [
        ({}, {"CPU": 1}),
        ({"resources": {"CPU": 0.5, "disk": 2}}, {"CPU": 0.5, "disk": 2}),
        ({"use_gpu": True}, {"CPU": 1, "GPU": 1}),
        ({"resources": {"CPU": 4.0, "GPU": 8.0}}, {"CPU": 4, "GPU": 8}),
        ({"jax_platform": "tpu"}, {"CPU": 1, "TPU": 1}),
        ({"scaling_options": {"topology": "4x4"}}, None),
    ],
)
def test_what_one_worker_gets(changes, resources):
    assert request(**changes).worker_resources() == resources


def test_whole_amounts_are_integers_since_ray_counts_with_them():
    found = request(resources={"GPU": 8.0}).worker_resources()
    assert found is not None and type(found["GPU"]) is int


def test_options_of_the_scaling_reach_ray():
    asked = request(use_gpu=True, scaling_options={"placement_strategy": "SPREAD"}).scaling()
    assert asked == {
        "num_workers": 2,
        "use_gpu": True,
        "resources_per_worker": {"CPU": 1, "GPU": 1},
        "placement_strategy": "SPREAD",
    }
    assert request(jax_platform="tpu").scaling()["use_tpu"] is True


@pytest.mark.parametrize(("attempts", "limit"), [(1, 0), (10, 9), (-1, -1)])
def test_waiting_for_resources_has_an_end_unless_it_shall_have_none(attempts, limit):
    found = request(start_attempts=attempts, max_failures=3).failures()
    assert found == {"max_failures": 3, "controller_failure_limit": limit}


def test_a_shortage_names_what_is_asked_and_what_is_there():
    asked = request(resources={"CPU": 1, "GPU": 2})
    assert asked.shortages({"CPU": 2.0, "GPU": 4.0}) == []
    (found,) = asked.shortages({"CPU": 2.0})
    assert found.startswith("resources: 2 workers with 2 GPU each need 4, found 0 on this machine.")


def test_a_folder_becomes_absolute_and_an_address_stays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert request(storage_path="runs").storage == os.path.join(tmp_path, "runs")
    assert request(storage_path="s3://bucket/runs").storage == "s3://bucket/runs"
    assert request().storage is None

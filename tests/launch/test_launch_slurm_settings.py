"""Do settings of a command line describe a job of SLURM, with its types?"""

import dataclasses

import pytest

from xtrainer.errors import ConfigError
from xtrainer.launch import SlurmJob
from xtrainer.launch.slurm_settings import slurm_job


def test_every_field_can_be_given() -> None:
    job = SlurmJob(
        job_name="a", nodes=3, tasks_per_node=4, gpus_per_node=4, cpus_per_task=2,
        memory_per_node="8G", time_limit="1:00", partition="p", account="b", qos="q",
        constraint="c", output="o", requeue=False, notice_s=90, environ={"A": "x=y", "B": ""},
        setup=("one", "two"), options=("--exclusive",), array="0-3%2",
    )  # fmt: skip
    settings = []
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        if isinstance(value, dict):
            settings += [f"--slurm.{field.name}.{key}={item}" for key, item in value.items()]
        elif isinstance(value, tuple):
            settings += [f"--slurm.{field.name}={item}" for item in value]
        else:
            settings.append(f"--slurm.{field.name}={value}")
    found = slurm_job(settings)
    assert dataclasses.replace(found, setup=tuple(found.setup), options=tuple(found.options)) == job


def test_every_mistake_is_told() -> None:
    wrong = ["--slurm.nodes", "--slurm.gpu=1", "--slurm.notice_s=soon", "--slurm.nodes.x=1"]
    with pytest.raises(ConfigError) as error:
        slurm_job(wrong)
    assert len(error.value.problems) == 4

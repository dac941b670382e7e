"""Joining processes: refusals in this process, real joins in processes of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from xtrainer.errors import ConfigError
from xtrainer.launch import initialize, is_main_process, process_count, process_index

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = ("SLURM_", "OMPI_", "JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(LAUNCHER_VARIABLES):
            monkeypatch.delenv(name)


def start(program: str, *arguments: str, **environ: str) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), **environ}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return out


def test_one_process_is_the_whole_run():
    info = initialize()
    assert (info.process_index, info.process_count, info.source) == (0, 1, "single")
    assert info.is_main
    assert not jax.distributed.is_initialized()


def test_one_process_is_main():
    assert (process_index(), process_count(), is_main_process()) == (0, 1, True)


def test_an_explicit_run_of_one_process_starts_nothing():
    assert initialize("10.0.0.1:1", 1, 0).process_count == 1
    assert not jax.distributed.is_initialized()


def test_some_of_three_arguments_name_those_missing():
    with pytest.raises(ConfigError, match="num_processes=2 without coordinator_address and proces"):
        initialize(num_processes=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1", 2, 0), r"found '10\.0\.0\.1', expected 'host:port'"),
        (("a:1", 0, 0), "num_processes: found 0"),
        (("a:1", 2, 2), "process_id: found 2, expected a number from 0 to 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        initialize(*arguments)


def test_joining_after_the_devices_are_up_is_refused():
    jax.devices()
    with pytest.raises(ConfigError, match=r"started its devices already.*first in the program"):
        initialize("127.0.0.1:1", 2, 0)


def test_slurm_after_the_devices_are_up_is_refused(monkeypatch):
    jax.devices()
    slurm = {"JOB_ID": "1", "STEP_NODELIST": "a", "NTASKS": "2", "PROCID": "0", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ConfigError, match="slurm asks it to join 2 processes"):
        initialize()


def test_another_platform_after_the_devices_are_up_is_refused():
    jax.devices()
    with pytest.raises(ConfigError, match="found 'cuda', but JAX has started 'cpu'"):
        initialize(platform="cuda")


def test_the_platform_that_runs_may_be_asked_for_again():
    jax.devices()
    assert initialize(platform="cpu").process_count == 1


@pytest.mark.parametrize(
    ("platform", "message"),
    [("cpu", "only GPUs are chosen by number"), (None, "only GPUs"), ("tpu", "TPU_VISIBLE_CHIPS")],
)
def test_device_ids_that_jax_cannot_choose_are_refused(platform, message):
    program = "import sys; from xtrainer.launch import initialize\n" + (
        f"try: initialize(platform={platform!r}, device_ids=[0])\n"
        "except ValueError as error: print(error)"
    )
    assert message in finish(start(program))


def test_choosing_gpus_sets_jax_and_starts_nothing():
    program = """
import jax
from jax._src import xla_bridge
from xtrainer.launch import initialize
initialize(platform="cuda", device_ids=[1, 3])
print(jax.config.jax_platforms, jax.config.values["jax_cuda_visible_devices"])
print(xla_bridge.backends_are_initialized())
"""
    assert finish(start(program)).split() == ["cuda,cpu", "1,3", "False"]


def test_choosing_the_cpu_leaves_other_devices_alone():
    program = """
import jax
from xtrainer.launch import initialize
initialize(platform="cpu")
print(jax.config.jax_platforms, {device.platform for device in jax.devices()})
"""
    assert finish(start(program, JAX_PLATFORMS="")).split() == ["cpu", "{'cpu'}"]


def test_open_mpi_without_an_address_says_what_to_set():
    program = """
from xtrainer.launch import initialize
try: initialize()
except ValueError as error: print(error)
"""
    out = finish(start(program, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0"))
    assert "Set JAX_COORDINATOR_ADDRESS" in out


def test_an_address_without_a_count_says_what_to_set():
    program = """
from xtrainer.launch import initialize
try: initialize()
except ValueError as error: print(error)
"""
    out = finish(start(program, JAX_COORDINATOR_ADDRESS="127.0.0.1:1"))
    assert "JAX_NUM_PROCESSES and JAX_PROCESS_ID" in out


WORKER = """
import glob, json, sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from xtrainer.launch import initialize, is_main_process, process_count, process_index

arguments = json.loads(sys.argv[1])
info = initialize(*arguments, timeout_s=60)
again = initialize(*arguments)
mesh = Mesh(jax.devices(), ("data",))
mine = jnp.full((1,), process_index() + 1.0)
whole = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), mine)
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P("data"),
                              out_specs=P()))(whole)
listening = [line.split()[1] for path in glob.glob("/proc/net/tcp*") for line in open(path)
             if line.split()[3] == "0A"]
try:
    initialize("127.0.0.1:9", 3, 0)
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "count": process_count(), "index": process_index(), "main": is_main_process(),
    "devices": len(jax.devices()), "total": float(total[0]), "source": info.source,
    "info": [info.process_index, info.process_count], "again": again.source,
    "listening": listening, "refused": refused,
}))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def join_two(by_environment: bool) -> tuple[list[dict], int]:
    port = free_port()
    workers = []
    for index in range(2):
        address = f"127.0.0.1:{port}"
        arguments = [] if by_environment else [address, 2, index]
        environ = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        workers.append(start(WORKER, json.dumps(arguments), **(environ if by_environment else {})))
    try:
        return [json.loads(finish(worker).splitlines()[-1]) for worker in workers], port
    finally:
        for worker in workers:
            worker.kill()


@pytest.mark.processes
@pytest.mark.parametrize("by_environment", [False, True])
def test_two_processes_join_and_sum(by_environment):
    results, port = join_two(by_environment)
    assert [result["index"] for result in results] == [0, 1]
    assert [result["main"] for result in results] == [True, False]
    assert [result["info"] for result in results] == [[0, 2], [1, 2]]
    for result in results:
        assert (result["count"], result["devices"], result["total"]) == (2, 2, 3.0)
        assert result["source"] == ("environment" if by_environment else "arguments")
        assert result["again"] == "running"
        assert "this is already process" in result["refused"]
    hosts = {
        at.split(":")[0] for at in results[0]["listening"] if int(at.split(":")[1], 16) == port
    }
    assert hosts <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, also as IPv6
    assert hosts or not Path("/proc/net/tcp").exists()

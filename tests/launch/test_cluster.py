"""What launched this process, by the environment alone."""

import pytest

from xtrainer.errors import ConfigError
from xtrainer.launch import detect_cluster

SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


def test_an_empty_environment_is_no_cluster():
    assert detect_cluster({}) is None


def test_srun_with_several_tasks_is_slurm():
    info = detect_cluster(SRUN)
    assert info is not None
    assert (info.kind, info.num_processes, info.process_id) == ("slurm", 4, 3)
    assert info.local_process_id == 1
    assert info.knows_address


def test_srun_with_one_task_is_no_cluster():
    assert detect_cluster(SRUN | {"SLURM_NTASKS": "1"}) is None


def test_an_interactive_step_of_a_large_allocation_is_no_cluster():
    assert detect_cluster(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_batch_script_outside_srun_is_no_cluster():
    batch = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NODELIST"}
    assert detect_cluster(batch) is None


def test_open_mpi_of_size_two_is_a_cluster_without_an_address():
    info = detect_cluster(MPIRUN)
    assert info is not None
    assert (info.kind, info.num_processes, info.process_id) == ("ompi", 2, 1)
    assert not info.knows_address


def test_open_mpi_four_tells_jax_the_address():
    info = detect_cluster(MPIRUN | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"})
    assert info is not None and info.knows_address


def test_open_mpi_of_size_one_is_no_cluster():
    assert detect_cluster(MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_a_coordinator_address_is_read_with_count_and_number():
    environ = {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:99",
        "JAX_NUM_PROCESSES": "8",
        "JAX_PROCESS_ID": "5",
    }
    info = detect_cluster(environ)
    assert info is not None
    assert (info.kind, info.coordinator_address) == ("environment", "10.0.0.1:99")
    assert (info.num_processes, info.process_id) == (8, 5)


def test_a_coordinator_address_goes_with_slurm():
    info = detect_cluster(SRUN | {"JAX_COORDINATOR_ADDRESS": "a:1"})
    assert info is not None
    assert (info.kind, info.coordinator_address) == ("slurm", "a:1")


def test_a_count_that_is_no_number_is_an_error():
    with pytest.raises(ConfigError, match=r"SLURM_NTASKS is 'four', expected a whole number"):
        detect_cluster(SRUN | {"SLURM_NTASKS": "four"})

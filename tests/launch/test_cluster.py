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
POD = {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4", "TPU_WORKER_ID": "2"}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.9", "JOB_COMPLETION_INDEX": "2"}
GIVEN = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:99",
    "JAX_NUM_PROCESSES": "8",
    "JAX_PROCESS_ID": "5",
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
    info = detect_cluster(GIVEN)
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


def test_address_count_and_number_win_over_the_launcher_around_them():
    for around in (SRUN, MPIRUN, POD, JOB):
        info = detect_cluster(around | GIVEN, on_tpu_vm=True)
        assert info is not None
        assert (info.kind, info.num_processes, info.process_id) == ("environment", 8, 5)
        assert info.local_process_id is None


def test_the_hosts_of_a_tpu_slice_are_its_processes():
    info = detect_cluster(POD, on_tpu_vm=True)
    assert info is not None
    assert (info.kind, info.num_processes, info.process_id) == ("tpu", 4, 2)
    assert info.knows_address
    assert info.local_process_id is None


def test_slices_of_a_tpu_follow_each_other():
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    info = detect_cluster(POD | slices, on_tpu_vm=True)
    assert info is not None
    assert (info.num_processes, info.process_id) == (8, 6)


def test_process_addresses_come_before_host_names_as_in_jax():
    info = detect_cluster(POD | {"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, on_tpu_vm=True)
    assert info is not None and info.num_processes == 2


@pytest.mark.parametrize("around", [{}, JOB])
def test_a_tpu_slice_of_one_host_is_no_cluster(around):
    assert detect_cluster(around | {"TPU_WORKER_HOSTNAMES": "localhost"}, on_tpu_vm=True) is None


def test_pod_variables_without_tpu_chips_are_no_cluster():
    assert detect_cluster(POD) is None


def test_a_cloud_tpu_vm_leaves_everything_to_jax():
    info = detect_cluster({}, on_tpu_vm=True)
    assert info is not None
    assert (info.kind, info.num_processes, info.process_id) == ("tpu", None, None)
    assert info.knows_address


def test_a_tpu_without_a_metadata_server_is_no_cluster():
    assert detect_cluster({"TPU_SKIP_MDS_QUERY": "1"}, on_tpu_vm=True) is None


@pytest.mark.parametrize(
    "environ",
    [
        POD,
        POD | {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"},
        POD | {"TPU_PROCESS_ADDRESSES": "a:1,b:1,c:1"},
    ],
)
def test_tpu_pods_are_counted_as_jax_counts_them(environ, monkeypatch):
    from jax._src.clusters import GkeTpuCluster

    for name, value in ({"MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"} | environ).items():
        monkeypatch.setenv(name, value)
    info = detect_cluster(environ, on_tpu_vm=True)
    assert info is not None
    assert info.num_processes == GkeTpuCluster.get_process_count()
    assert info.process_id == GkeTpuCluster.get_process_id()


def test_an_indexed_job_with_the_kubernetes_client_is_left_to_jax():
    info = detect_cluster(JOB, kubernetes_client=True)
    assert info is not None
    assert (info.kind, info.num_processes, info.process_id) == ("kubernetes", None, 2)
    assert info.knows_address


def test_an_indexed_job_with_address_and_count_needs_no_client():
    said = {"JAX_COORDINATOR_ADDRESS": "run-0-0.run:8476", "JAX_NUM_PROCESSES": "4"}
    info = detect_cluster(JOB | said)
    assert info is not None
    assert (info.kind, info.num_processes, info.process_id) == ("kubernetes", 4, 2)
    assert info.coordinator_address == "run-0-0.run:8476"


def test_an_indexed_job_that_cannot_join_says_that_it_runs_alone(caplog):
    assert detect_cluster(JOB) is None
    assert "index 2 of a Kubernetes Job, and it runs alone" in caplog.text


def test_an_indexed_job_of_one_process_is_no_cluster(caplog):
    assert detect_cluster(JOB | {"JAX_NUM_PROCESSES": "1"}, kubernetes_client=True) is None
    assert caplog.text == ""


def test_any_other_pod_of_kubernetes_is_no_cluster():
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.9"}
    assert detect_cluster(pod, kubernetes_client=True) is None


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            SRUN | {"SLURM_STEP_ID": "0"},
            "SLURM step 77.0, process 3 of 4, coordinator found by JAX.",
        ),
        (MPIRUN, "Open MPI, process 1 of 2, coordinator not said."),
        (GIVEN, "JAX_COORDINATOR_ADDRESS, process 5 of 8, coordinator 10.0.0.1:99."),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1"},
            "JAX_COORDINATOR_ADDRESS, processes not said, coordinator a:1.",
        ),
        ({}, "Cloud TPU VM, processes found by JAX, coordinator found by JAX."),
        (
            POD | {"MEGASCALE_NUM_SLICES": "2"},
            "TPU pod of 2 slices, process 2 of 8, coordinator found by JAX.",
        ),
        (
            JOB | {"JAX_COORDINATOR_ADDRESS": "a:1"},
            "Kubernetes Job, process 2 of ?, coordinator a:1.",
        ),
    ],
)
def test_a_cluster_describes_itself_in_one_sentence(environ, sentence):
    on_tpu = not environ or "TPU_WORKER_ID" in environ
    info = detect_cluster(environ, on_tpu_vm=on_tpu)
    assert info is not None and info.description == sentence

"""The recipes in ``experiments/launch``: do they parse, and do they say what they must?"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sweep
import yaml

from xtrainer.errors import CheckpointWriteError, HangError, NoUsableCheckpointError
from xtrainer.loop import StopReason

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "launch"
JOBSET = FOLDER / "gke_jobset.yaml"


@pytest.mark.parametrize("name", ["slurm.sbatch", "slurm_array.sbatch", "tpu_pod.sh"])
def test_the_scripts_are_bash(name):
    result = subprocess.run(["bash", "-n", FOLDER / name], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_batch_scripts_are_as_the_generator_writes_them(tmp_path):
    writer = tmp_path / "write_slurm.py"
    writer.write_text((FOLDER / "write_slurm.py").read_text())
    environ = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    subprocess.run([sys.executable, writer], check=True, env=environ, capture_output=True)
    again = "run: python experiments/launch/write_slurm.py"
    for name in ("slurm.sbatch", "slurm_array.sbatch"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), again


def pod(folder: Path, *command: str, **settings: str) -> subprocess.CompletedProcess:
    """Runs the recipe beside a ``gcloud`` that shows its arguments and runs what is for a machine.

    Returns:
        What it gave; the output is the arguments, one a line, then what the machine printed.
    """
    gcloud = folder / "gcloud"
    gcloud.write_text(
        '#!/bin/bash\nfor last; do echo "$last"; done\ncd "$HOME" && bash -c "${last#--command=}"\n'
    )
    gcloud.chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), **settings}
    return subprocess.run(
        ["bash", FOLDER / "tpu_pod.sh", *command], env=environ, capture_output=True, text=True
    )


def test_a_command_reaches_every_machine_of_the_pod_word_by_word(tmp_path):
    (tmp_path / "my code").mkdir()
    settings = {"TPU_NAME": "pod", "ZONE": "zone-a", "REMOTE_DIR": "my code"}
    words = ["a b", "it's", "$HOME", "", "*"]
    result = pod(tmp_path, "printf", "<%s>", *words, **settings)
    assert result.returncode == 0, result.stderr
    *arguments, printed = result.stdout.splitlines()
    assert arguments[:7] == [
        *("compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone-a", "--worker=all"),
    ]
    assert printed == "".join(f"<{word}>" for word in words)


def test_a_pod_of_another_project_with_an_environment(tmp_path):
    (tmp_path / "xtrainer").mkdir()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("export ACTIVE=yes\n")
    settings = {"TPU_NAME": "pod", "ZONE": "a", "PROJECT": "lab", "VENV": f"{tmp_path}/venv"}
    result = pod(tmp_path, "sh", "-c", "echo $ACTIVE $(basename $PWD)", **settings)
    assert "--project=lab" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == "yes xtrainer"


@pytest.mark.parametrize(
    ("settings", "command", "message"),
    [
        ({"ZONE": "a"}, ["true"], "TPU_NAME"),
        ({"TPU_NAME": "pod"}, ["true"], "ZONE"),
        ({"TPU_NAME": "pod", "ZONE": "a"}, [], "usage:"),
    ],
)
def test_a_pod_recipe_without_its_settings_says_which(settings, command, message, tmp_path):
    result = pod(tmp_path, *command, **settings)
    assert result.returncode != 0
    assert message in result.stderr
    assert result.stdout == ""


def test_the_jobset_describes_whole_slices_that_restart_together():
    jobset = yaml.safe_load(JOBSET.read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completionMode"] == "Indexed"  # sets JOB_COMPLETION_INDEX
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_jobset_asks_for_every_chip_of_its_topology():
    jobset = yaml.safe_load(JOBSET.read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    machine = job["template"]["spec"]
    rows, columns = machine["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = machine["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] * chips == int(rows) * int(columns)


def ends_of_a_machine(jobset: dict, code: int, disrupted: bool = False) -> str:
    """Returns what becomes of a JobSet when a machine ends, by the rules of Kubernetes and JobSet.

    A Job takes the first rule that fits the pod, else its backoff limit; the JobSet the first that
    fits the reason and the message of the failed Job, else ``RestartJobSet``.
    """
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"operator": "In", "values": []})
        assert codes["operator"] == "In" and rule["action"] == "FailJob"
        if code in codes["values"] or (disrupted and "onPodConditions" in rule):
            reason, message = "PodFailurePolicy", f"Pod a/b matching FailJob rule at index {index}"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (
            StopReason.PREEMPTED.exit_code,
            False,
            "RestartJobSetAndIgnoreMaxRestarts",
        ),  # told to end, and has saved
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),  # preempted, and was too slow
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, False, "RestartJobSet"),
        (HangError.exit_code, False, "RestartJobSet"),
        (CheckpointWriteError.exit_code, False, "RestartJobSet"),
        (137, False, "RestartJobSet"),  # out of memory
        (NoUsableCheckpointError.exit_code, False, "FailJobSet"),
        (StopReason.NONFINITE.exit_code, False, "FailJobSet"),
    ],
)
def test_the_jobset_restarts_what_a_restart_can_heal(code, disrupted, action):
    assert ends_of_a_machine(yaml.safe_load(JOBSET.read_text()), code, disrupted) == action


def test_the_rules_of_the_jobset_name_its_container_and_can_take_effect():
    spec = yaml.safe_load(JOBSET.read_text())["spec"]
    assert spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    named = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"][1:]}
    assert named == {container["name"] for container in pod["containers"]}
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for


def test_the_runs_of_the_jobset_lie_on_a_volume_of_all_its_machines():
    job = yaml.safe_load(JOBSET.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert container["args"][0].partition("=")[2].startswith(mount["mountPath"] + "/")
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert "persistentVolumeClaim" in pod["volumes"][0]


def test_the_array_has_a_task_for_each_setting_of_the_sweep():
    lines = (FOLDER / "slurm_array.sbatch").read_text().splitlines()
    (numbers,) = [line.partition("--array=")[2] for line in lines if "--array=" in line]
    first, last = numbers.partition("%")[0].split("-")
    assert (int(first), int(last) + 1) == (0, sweep.NUM_TASKS)


def test_the_commands_name_experiments_that_are_there():
    container = yaml.safe_load(JOBSET.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    script = container["template"]["spec"]["containers"][0]["command"][-1]
    assert (FOLDER.parents[1] / script).is_file()
    assert f"python {script} " in (FOLDER / "slurm.sbatch").read_text()
    assert "python experiments/sweep.py " in (FOLDER / "slurm_array.sbatch").read_text()


def test_the_comment_for_gpus_is_a_container_that_the_launcher_understands():
    from xtrainer.launch import detect_cluster

    lines = JOBSET.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("#   nodeSelector"))
    comment = [line.removeprefix("#   ") for line in lines[first : first + 5]]
    gpu = yaml.safe_load("\n".join(comment))
    environ = {entry["name"]: entry["value"] for entry in gpu["env"]}
    pod_variables = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
    info = detect_cluster(environ | pod_variables)
    assert info is not None
    assert (info.kind, info.process_id) == ("kubernetes", 3)
    jobset = yaml.safe_load(JOBSET.read_text())
    job = jobset["spec"]["replicatedJobs"][0]
    assert info.num_processes == job["template"]["spec"]["parallelism"]
    name = jobset["metadata"]["name"]
    assert info.coordinator_address == f"{name}-{job['name']}-0-0.{name}:8476"

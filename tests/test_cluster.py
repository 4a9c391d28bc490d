"""Who the workers are, how they meet, and what their supervisor does: all without TensorFlow."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from keras_stss.cli import _parse
from keras_stss.config import ConfigError, TrainConfig, load_config
from keras_stss.training.workers import meeting
from keras_stss.training.workers.cluster import Cluster, expand_hosts, find_cluster
from keras_stss.training.workers.meeting import meet, tell_end

AUTO, MULTI = TrainConfig(), TrainConfig(strategy="multi_worker")
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "n[9-11]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_JOB_ID": "40007",
}
KUBERNETES = {"KERAS_STSS_SERVICE": "video", "KERAS_STSS_WORKERS": "2", "HOSTNAME": "my-job-1"}


def tf_config(task, **jobs):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": task, "environment": "cloud"})}


def test_tf_config_names_the_workers():
    """A chief of its own, as some operators start it, is the first worker."""
    found = find_cluster(AUTO, tf_config({"type": "worker", "index": 1}, worker=["a:1", "b:2"]))
    assert found == Cluster(("a:1", "b:2"), 1)
    found = find_cluster(AUTO, tf_config({"type": "worker", "index": "0"}, chief=["c:3"], worker=["a:1", "[::1]:2"]))
    assert found == Cluster(("c:3", "a:1", "[::1]:2"), 1)
    assert found.host_port(2) == ("::1", 2)


def test_slurm_numbers_its_tasks_in_the_order_of_its_list():
    """n9 comes before n10, which sorting by name turns round; tasks of one node have consecutive ports."""
    assert find_cluster(AUTO, SLURM) == Cluster(("n9:12007", "n10:12007", "n11:12007"), 1)
    two = SLURM | {"SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_LOCALID": "1"}
    assert find_cluster(AUTO, two | {"KERAS_STSS_PORT": "700"}).addresses == ("a:700", "a:701", "b:700")
    assert find_cluster(AUTO, two | {"SLURM_STEP_RESV_PORTS": "900-902"}).addresses == ("a:900", "a:901", "b:900")
    with pytest.raises(ConfigError, match="--distribution=block"):
        find_cluster(AUTO, two | {"SLURM_LOCALID": "0"})


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[08-10,12]", ["n08", "n09", "n10", "n12"]),
        ("a,r[1-2]c[01,03]-ib", ["a", "r1c01-ib", "r1c03-ib", "r2c01-ib", "r2c03-ib"]),
    ],
)
def test_a_list_of_hosts(text, hosts):
    assert expand_hosts(text) == hosts


def test_kubernetes_numbers_its_pods():
    assert find_cluster(AUTO, KUBERNETES) == Cluster(("my-job-0.video:2222", "my-job-1.video:2222"), 1)


def test_the_first_that_is_described_is_taken():
    described = KUBERNETES | SLURM | tf_config({"type": "worker", "index": 0}, worker=["a:1", "b:2"])
    assert find_cluster(AUTO, described).addresses == ("a:1", "b:2")
    assert find_cluster(TrainConfig(cluster="kubernetes"), described).count == 2
    assert find_cluster(TrainConfig(cluster="slurm"), described).count == 3


def test_one_process_is_no_cluster():
    alone = tf_config({"type": "worker", "index": 0}, worker=["a:1"])
    for environment in ({}, {"TF_CONFIG": "{}"}, alone):
        assert find_cluster(AUTO, environment) is None
    assert find_cluster(MULTI, alone).count == 1
    assert find_cluster(TrainConfig(strategy="one"), SLURM) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "train.strategy=multi_worker needs to know the workers"),
        ({"TF_CONFIG": "{'worker'}"}, "TF_CONFIG is not JSON .* Received: {'worker'}"),
        (
            tf_config({"type": "worker", "index": 2}, worker=["a:1", "b:2"]),
            "index of a worker must be from 0 to 1.*: 2",
        ),
        (tf_config({"type": "ps", "index": 0}, worker=["a:1"]), "task must be"),
        (tf_config(None, worker=["a:1"]), "task must be"),
        (tf_config({"type": "worker", "index": 0}, worker=["a:1"], ps=["b:1"]), "may have chief and worker.*ps"),
        (tf_config({"type": "worker", "index": 0}, worker=["a"]), "must be host:port. Received: 'a'"),
        (tf_config({"type": "worker", "index": 0}, worker=["a:99999"]), "must be host:port"),
        (tf_config({"type": "worker", "index": 0}, worker=["a:1", "a:1"]), "two workers have one address"),
        (tf_config({"type": "worker", "index": 0}, worker="a:1"), "cluster must be"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[9-10]"}, "contradict each other"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[9-"}, "no list of hosts"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID must be a whole number"),
        (KUBERNETES | {"HOSTNAME": "my-job-2"}, "must end in -0 to -1"),
        (KUBERNETES | {"KERAS_STSS_SERVICE": ""}, "KERAS_STSS_SERVICE must be set"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(environment, message):
    with pytest.raises(ConfigError, match=message) as caught:
        find_cluster(MULTI, environment)
    assert "\n" not in str(caught.value)


# --- the meeting


@pytest.fixture
def addresses():
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return tuple(f"127.0.0.1:{port}" for port in ports)


def start(results, addresses, index, facts, seconds=20.0, action=meet):
    def run():
        try:
            action(Cluster(addresses, index), facts, seconds)
            results[index] = "met"
        except ConfigError as error:
            results[index] = str(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def outcome(addresses, workers):
    """What each worker, (index, facts, seconds), hears."""
    results = {}
    for thread in [start(results, addresses, *worker) for worker in workers]:
        thread.join()
    return results


def test_workers_meet_whoever_comes_first(addresses):
    """Somebody else who calls the chief's port, or a worker that goes away and comes again, does not disturb."""
    results, threads = {}, [None] * 3
    threads[0] = start(results, addresses, 0, {"a": 1})
    stranger = None
    while stranger is None:
        try:
            stranger = socket.create_connection(Cluster(addresses, 0).host_port(0))
        except OSError:
            time.sleep(0.05)
    stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with socket.create_connection(Cluster(addresses, 0).host_port(0)) as gone:
        gone.sendall(b'{"worker": 1, "facts": {"a": 1}}\n')
    threads[2] = start(results, addresses, 2, {"a": 1})
    time.sleep(1.0)
    assert results == {}  # worker 1 is not there, though it has called
    threads[1] = start(results, addresses, 1, {"a": 1})
    for thread in threads:
        thread.join()
    stranger.close()
    assert results == {0: "met", 1: "met", 2: "met"}


def test_workers_that_differ_are_refused(addresses):
    results = outcome(addresses, [(0, {"batch": 4, "x": 1}), (1, {"batch": 8, "x": 1})])
    assert results[0] == results[1] == "worker 1 does not do the same as the chief: batch: 8 there, 4 here"


def test_a_worker_that_does_not_come_is_named(addresses):
    results = outcome(addresses, [(0, {}, 1.5), (1, {}, 1.5)])
    assert f"worker 2 ({addresses[2]}) did not come within 1.5 seconds (train.wait)" in results[0]
    results |= outcome(addresses, [(2, {}, 1.0)])
    assert f"worker 0 ({addresses[0]}) did not come within 1 seconds (train.wait): Connection refused" in results[2]


def test_a_port_that_is_taken_is_named(addresses, monkeypatch):
    monkeypatch.setattr(meeting, "RELEASE", 0.1)
    host, port = Cluster(addresses, 1).host_port(1)
    with socket.create_server((host, port)):
        results = outcome(addresses, [(1, {}, 1.0)])
    assert results[1].startswith(f"port {port} of worker 1 ({addresses[1]}) cannot be opened: Address already in use")


@pytest.mark.parametrize("ended", [0, 1])
def test_a_worker_that_has_ended_for_good_is_not_waited_for(addresses, ended):
    results = {}
    began = time.monotonic()
    threads = [
        start(results, addresses[:2], 1 - ended, {}),
        start({}, addresses[:2], ended, 2, action=tell_end),
    ]
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 15
    assert results[1 - ended].startswith(f"worker {ended} ({addresses[ended]}) has ended with code 2")


# --- the supervisor

WORKER = """
import os, signal, sys, time
from keras_stss.config import TrainConfig
from keras_stss.training.workers.supervise import LOST, all_end, restarted, supervise
folder, what = sys.argv[1:]
code = supervise(TrainConfig(restarts=2))
if code is not None:
    sys.exit(code)
count = len(os.listdir(folder))
open(f"{folder}/{count}-{os.getpid()}", "w").write(str(restarted()))
if what == "wait":
    time.sleep(60)
if what == "signal":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143))
    print("ready", flush=True)
    time.sleep(60)
if what == "shared":
    all_end()
    sys.exit(2)
if what == "twice" and count == 2:
    sys.exit(0)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(LOST)
"""


def supervisor(tmp_path, what, **options):
    environment = os.environ | tf_config({"type": "worker", "index": 0}, worker=["127.0.0.1:1", "127.0.0.1:2"])
    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path), what],
        cwd=root, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options,
    )  # fmt: skip


def attempts(folder):
    return [path.read_text() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("what", "code", "started"), [("lost", 138, 3), ("kill", 137, 3), ("twice", 0, 3)], ids=["lost", "killed", "well"]
)
def test_a_worker_is_started_again_so_often(tmp_path, what, code, started):
    process = supervisor(tmp_path, what)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert attempts(tmp_path) == ["False"] + ["True"] * (started - 1)
    reason = "was ended by SIGKILL" if what == "kill" else "lost another worker"
    assert f"worker 0 {reason}; starting again (2 of 2)" in errors
    assert ("it was started again 2 times (train.restarts)" in errors) == (code != 0)


def test_signals_reach_the_worker_and_it_is_not_started_again(tmp_path):
    process = supervisor(tmp_path, "signal")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert len(attempts(tmp_path)) == 1


def test_a_signal_that_comes_too_early_asks_to_stop_all_the_same(tmp_path):
    process = supervisor(tmp_path, "wait")
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_workers_that_end_by_the_same_take_no_farewell(tmp_path):
    """Otherwise the supervisor would try for two minutes to tell the other one, which is not there."""
    process = supervisor(tmp_path, "shared")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(attempts(tmp_path)) == 1


def test_the_worker_ends_with_its_supervisor(tmp_path):
    process = supervisor(tmp_path, "wait")
    while not (started := list(tmp_path.iterdir())):
        time.sleep(0.05)
    worker = int(started[0].name.split("-")[1])
    process.kill()
    process.communicate(timeout=30)
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            return  # ended; nobody asks for its code
        time.sleep(0.05)
    pytest.fail("the worker outlived its supervisor")


# --- the manifests

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "cluster"


@pytest.mark.parametrize("name", ["tfjob.yaml", "job.yaml"])
def test_a_manifest_starts_what_it_says(name):
    """Its command is one that the command line knows; its volumes, ports and numbers of workers fit together."""
    resource = list(yaml.safe_load_all((EXAMPLES / name).read_text()))[-1]
    job = resource["spec"]["tfReplicaSpecs"]["Worker"] if name == "tfjob.yaml" else resource["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["keras-stss", "train"]
    options = _parse(["train", *container["args"]])
    train = load_config(options.config, options.overrides).train
    assert train.strategy == "multi_worker"
    workers = job["replicas"] if name == "tfjob.yaml" else job["completions"]
    assert train.batch_size % (workers * container["resources"]["limits"]["nvidia.com/gpu"]) == 0
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    if name == "tfjob.yaml":
        assert (container["name"], train.cluster, job["restartPolicy"]) == ("tensorflow", "tf_config", "ExitCode")
    else:
        environment = {each["name"]: each["value"] for each in container["env"]} | {"HOSTNAME": "selfynet-3"}
        found = find_cluster(train, environment)
        assert found.addresses[0] == f"{resource['metadata']['name']}-0.{pod['subdomain']}:2222"
        assert (found.count, found.index) == (job["parallelism"], 3)
        assert container["ports"] == [{"containerPort": 2222}]


def test_the_slurm_script_starts_the_workers(tmp_path):
    """Run with stand-ins of srun and scontrol: the settings arrive, and a stopped job goes back into the queue."""
    for name, text in (("srun", 'echo "$@"; exit $CODE'), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    arguments = ["bash", str(EXAMPLES / "train.slurm"), "tsn.yaml", "data.root=/a b"]
    outputs = {}
    for code in (0, 2, 138, 143):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "CODE": str(code)}
        result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
        assert result.returncode == code, result.stderr
        outputs[code] = result.stdout.splitlines()
    assert outputs[0][0].endswith(
        "keras-stss train --config tsn.yaml train.strategy=multi_worker train.cluster=slurm data.root=/a b"
    )
    assert [len(lines) for lines in outputs.values()] == [1, 1, 2, 2]
    assert outputs[143][1] == "requeue 7"

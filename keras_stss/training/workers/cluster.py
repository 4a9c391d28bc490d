"""Who the workers of a job are: read from TF_CONFIG, from Slurm's variables or from those of Kubernetes.

TensorFlow's own resolvers are not used: that of Slurm sorts the hosts by name while Slurm numbers the tasks in the
order of its list (n9, n10), asks nvidia-smi, and overwrites CUDA_VISIBLE_DEVICES; that of Kubernetes needs another
package and the right to list pods.
"""

import dataclasses
import json
import os
import re

from keras_stss.config import ConfigError

#: Where nothing says otherwise: the first port of a Slurm job is PORT + its number modulo SLURM_PORTS.
PORT, SLURM_PORTS = 12000, 20000
KUBERNETES_PORT = 2222


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a job, and which of them this process is.

    Args:
        addresses: "host:port" of each worker; the first is the chief.
        index: this worker.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def count(self):
        return len(self.addresses)

    def host_port(self, index):
        host, _, port = self.addresses[index].rpartition(":")
        return host.strip("[]"), int(port)


def find_cluster(train, environment=os.environ):
    """The cluster that the environment describes, where the config wants one.

    Args:
        train: :class:`keras_stss.config.TrainConfig`: strategy and cluster are read.
        environment: dictionary of variables.

    Returns:
        :class:`Cluster`, or None: ``strategy`` is "one" or "mirrored", or it is "auto" and no cluster of more than one
        worker is described.

    Raises:
        ConfigError: where the description is wrong, or ``strategy`` is "multi_worker" and there is none.
    """
    if train.strategy not in ("auto", "multi_worker"):
        return None
    readers = {"tf_config": _from_tf_config, "slurm": _from_slurm, "kubernetes": _from_kubernetes}
    chosen = readers if train.cluster == "auto" else (train.cluster,)
    cluster = next((found for name in chosen if (found := readers[name](environment))), None)
    if cluster:
        for address in cluster.addresses:
            _check_address(address)
        if len(set(cluster.addresses)) < cluster.count:
            raise ConfigError(f"two workers have one address. Received: {', '.join(cluster.addresses)}")
    if train.strategy == "multi_worker" and cluster is None:
        wanted = {
            "tf_config": "TF_CONFIG",
            "slurm": "Slurm's variables of a step (start it with srun)",
            "kubernetes": "KERAS_STSS_SERVICE and KERAS_STSS_WORKERS",
        }
        raise ConfigError(
            "train.strategy=multi_worker needs to know the workers, but the environment does not have "
            + " or ".join(wanted[name] for name in chosen)
        )
    return cluster if cluster and (cluster.count > 1 or train.strategy == "multi_worker") else None


def _check_address(address):
    match = re.fullmatch(r"(?:[^\s:\[\]]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address) if isinstance(address, str) else None
    if not match or not 0 < int(match[1]) < 2**16:
        raise ConfigError(f"a worker's address must be host:port. Received: {address!r}")


def _from_tf_config(environment):
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"TF_CONFIG is not JSON ({error}). Received: {text[:200]}") from None
    jobs = values.get("cluster") if isinstance(values, dict) else None
    if not jobs:
        return None  # {} or a task without a cluster stands for a job of one process
    task = values.get("task")
    if not isinstance(jobs, dict) or not all(isinstance(hosts, list) for hosts in jobs.values()):
        raise ConfigError(f'TF_CONFIG: cluster must be {{"worker": ["host:port", …]}}. Received: {json.dumps(jobs)}')
    if unknown := sorted(set(jobs) - {"chief", "worker"}):
        raise ConfigError(f"TF_CONFIG: cluster may have chief and worker. Received: {', '.join(unknown)} as well")
    if not isinstance(task, dict) or task.get("type") not in jobs:
        raise ConfigError(
            f'TF_CONFIG: task must be {{"type": …, "index": …}} with a type of the cluster ({", ".join(jobs)}). '
            f"Received: {json.dumps(task)}"
        )
    kind, index, count = task["type"], task.get("index"), len(jobs[task["type"]])
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise ConfigError(f"TF_CONFIG: the index of a {kind} must be from 0 to {count - 1}. Received: {index!r}")
    chiefs = jobs.get("chief", [])
    return Cluster((*chiefs, *jobs.get("worker", [])), index + (len(chiefs) if kind == "worker" else 0))


def _from_slurm(environment):
    """One worker a task of the job step; several tasks of a node have consecutive ports."""
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    if any(not environment.get(name) for name in names):
        return None
    index, count = (_whole_number(environment, name) for name in names[:2])
    hosts = expand_hosts(environment[names[2]])
    tasks = _expand_tasks(environment[names[3]])
    if len(hosts) != len(tasks) or sum(tasks) != count or index >= count:
        raise ConfigError("Slurm's variables contradict each other: " + _shown(environment, names))
    workers = [(host, local) for host, number in zip(hosts, tasks, strict=True) for local in range(number)]
    local = environment.get("SLURM_LOCALID")
    if max(tasks) > 1 and local not in (None, str(workers[index][1])):
        raise ConfigError(
            "tasks of one node must have consecutive numbers: start them with srun --distribution=block. Received: "
            + _shown(environment, [*names, "SLURM_LOCALID"])
        )
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
    reserved = re.match(r"\d+", environment.get("SLURM_STEP_RESV_PORTS", ""))
    port = _port(environment, int(reserved[0]) if reserved else PORT + job % SLURM_PORTS)
    return Cluster(tuple(f"{host}:{port + local}" for host, local in workers), index)


def expand_hosts(text):
    """Slurm's list of hosts as a list: ``n[9-10],r[1-2]c[01,03]`` → n9, n10, r1c01, r1c03, r2c01, r2c03."""
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if ",".join(parts) != text:
        raise ConfigError(f"SLURM_STEP_NODELIST is no list of hosts. Received: {text}")
    return [host for part in parts for host in _expand_part(part)]


def _expand_part(part):
    match = re.match(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if not match:
        return [part]
    head, ranges, tail = match.groups()
    hosts = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ConfigError(f"SLURM_STEP_NODELIST is no list of hosts. Received: {part}")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
        hosts += [head + number + rest for number in numbers for rest in _expand_part(tail)]
    return hosts


def _expand_tasks(text):
    """Slurm's numbers of tasks as a list: ``2(x3),1`` → 2, 2, 2, 1."""
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE is no list of numbers. Received: {text}")
        numbers += [int(match[1])] * int(match[2] or 1)
    return numbers


def _from_kubernetes(environment):
    """Pods NAME-0, NAME-1, … behind a headless service: those of an Indexed Job or of a StatefulSet."""
    names = ("KERAS_STSS_SERVICE", "KERAS_STSS_WORKERS")
    if not any(environment.get(name) for name in names):
        return None
    if missing := [name for name in (*names, "HOSTNAME") if not environment.get(name)]:
        raise ConfigError(f"Kubernetes: {', '.join(missing)} must be set, too. Received: " + _shown(environment, names))
    count = _whole_number(environment, "KERAS_STSS_WORKERS")
    match = re.fullmatch(r"(.+)-(\d+)", environment["HOSTNAME"].split(".")[0])
    if not match or int(match[2]) >= count:
        raise ConfigError(
            f"Kubernetes: the pod's HOSTNAME must end in -0 to -{count - 1}, as those of an Indexed Job with a "
            f"subdomain or of a StatefulSet do. Received: {environment['HOSTNAME']}"
        )
    port = _port(environment, KUBERNETES_PORT)
    service = environment["KERAS_STSS_SERVICE"]
    return Cluster(tuple(f"{match[1]}-{number}.{service}:{port}" for number in range(count)), int(match[2]))


def _port(environment, default):
    return _whole_number(environment, "KERAS_STSS_PORT") if environment.get("KERAS_STSS_PORT") else default


def _whole_number(environment, name):
    if not environment[name].isdecimal():
        raise ConfigError(f"{name} must be a whole number. Received: {environment[name]}")
    return int(environment[name])


def _shown(environment, names):
    return ", ".join(f"{name}={environment.get(name)}" for name in names)

"""Where the workers of a job meet before TensorFlow starts, which by itself waits without end for one that is missing.

The chief listens at its own address, the others call it and say who they are; once all are there, it lets them go, and
TensorFlow opens the same ports. Each says what has to be the same everywhere, too: otherwise a collective would hang.
"""

import contextlib
import errno
import json
import logging
import select
import socket
import time

from keras_stss.config import ConfigError

log = logging.getLogger(__name__)

#: Seconds: until a missing worker is first told of, between two calls, for one message, for a port to become free.
PATIENCE, PAUSE, ANSWER, RELEASE = 15.0, 0.3, 5.0, 10.0
_LONGEST = 1 << 16  # bytes of a message


def meet(cluster, facts, seconds):
    """Waits until all workers are there.

    Args:
        cluster: :class:`keras_stss.training.workers.cluster.Cluster`.
        facts: dictionary for JSON that has to be the same on all workers.
        seconds: how long to wait.

    Raises:
        ConfigError: where the port is taken, a worker does not come in time, or the facts differ.
    """
    deadline = time.monotonic() + seconds
    with _own_port(cluster) as server:
        if cluster.index == 0:
            _Chief(cluster, facts, seconds, deadline).receive(server)
            return
    _call_chief(cluster, facts, seconds, deadline)


def _own_port(cluster):
    """A socket on this worker's port: no other program has it. One that was just killed may have it for a moment."""
    port = cluster.host_port(cluster.index)[1]
    give_up = time.monotonic() + RELEASE
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", port), family=family, backlog=cluster.count, dualstack_ipv6=both)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > give_up:
                raise ConfigError(
                    f"port {port} of worker {cluster.index} ({cluster.addresses[cluster.index]}) cannot be opened: "
                    f"{error.strerror}; end what uses it, or choose another port"
                ) from None
        time.sleep(PAUSE)


class _Chief:
    """The chief's side: one open connection for each worker that waits."""

    def __init__(self, cluster, facts, seconds, deadline):
        self.cluster, self.facts, self.seconds, self.deadline = cluster, facts, seconds, deadline
        self.waiting = {}  # worker → connection

    def receive(self, server):
        tell = time.monotonic() + PATIENCE
        with contextlib.ExitStack() as connections:
            while len(self.waiting) < self.cluster.count - 1:
                if select.select([server], [], [], PAUSE)[0]:
                    self._take(connections.enter_context(server.accept()[0]))
                self._drop_gone()
                if time.monotonic() > tell and self._missing():
                    tell = float("inf")
                    log.info("waiting for %s", self._missing())
                if time.monotonic() > self.deadline and self._missing():
                    self._refuse(
                        f"{self._missing()} did not come within {self.seconds:g} seconds (train.wait); "
                        "see what became of it, or wait longer"
                    )
            for connection in self.waiting.values():
                _send(connection, {"go": True})

    def _missing(self):
        absent = [number for number in range(1, self.cluster.count) if number not in self.waiting]
        return ", ".join(f"worker {number} ({self.cluster.addresses[number]})" for number in absent)

    def _take(self, connection):
        message = _receive(connection)
        number = message.get("worker")
        if not isinstance(number, int) or not 0 < number < self.cluster.count:
            return  # somebody else
        if "ended" in message:
            self.waiting[number] = connection
            self._refuse(_ended(self.cluster, number, message["ended"]))
        self.waiting[number] = connection
        if lines := _differences(self.facts, message.get("facts")):
            self._refuse(f"worker {number} does not do the same as the chief: " + "; ".join(lines))

    def _drop_gone(self):
        """A worker that waits says nothing more: one that can be read from has gone, and will call again."""
        for number, connection in list(self.waiting.items()):
            if select.select([connection], [], [], 0)[0]:
                del self.waiting[number]

    def _refuse(self, text):
        for connection in self.waiting.values():
            _send(connection, {"refused": text})
        raise ConfigError(text)


def _call_chief(cluster, facts, seconds, deadline, more=None):
    tell, reason = time.monotonic() + PATIENCE, "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(cluster.host_port(0), timeout=ANSWER) as connection:
                _send(connection, {"worker": cluster.index, "facts": facts, **(more or {})})
                answer = _receive(connection, max(deadline + ANSWER - time.monotonic(), ANSWER))
            if answer.get("go"):
                return
            if "refused" in answer:
                raise ConfigError(str(answer["refused"]))
            reason = "another program answers there"  # or the chief of before, which is about to end
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > tell:
            tell = float("inf")
            log.info("waiting for worker 0 (%s): %s", cluster.addresses[0], reason)
        time.sleep(PAUSE)
    raise ConfigError(
        f"worker 0 ({cluster.addresses[0]}) did not come within {seconds:g} seconds (train.wait): {reason}; "
        "see what became of it, or wait longer"
    )


def tell_end(cluster, code, seconds):
    """Tells the other workers that this one has ended for good, so that they do not wait for it when they meet.

    Args:
        cluster: :class:`keras_stss.training.workers.cluster.Cluster`.
        code: this worker's exit code.
        seconds: how long to try; it returns as soon as all have heard, if they come.
    """
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError, ConfigError):
        if cluster.index == 0:
            _refuse_all(cluster, code, deadline)
        else:
            _call_chief(cluster, {}, seconds, deadline, {"ended": code})


def _refuse_all(cluster, code, deadline):
    left = set(range(1, cluster.count))
    with _own_port(cluster) as server:
        while left and time.monotonic() < deadline:
            if select.select([server], [], [], PAUSE)[0]:
                with server.accept()[0] as connection:
                    number = _receive(connection).get("worker")
                    _send(connection, {"refused": _ended(cluster, 0, code)})
                left -= {number}


def _ended(cluster, number, code):
    return f"worker {number} ({cluster.addresses[number]}) has ended with code {code}; its own output says why"


def _send(connection, message):
    with contextlib.suppress(OSError):  # whoever has gone will be missed
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection, seconds=ANSWER):
    """A message of one line, {} for anything else."""
    received, deadline = b"", time.monotonic() + seconds
    try:
        while not received.endswith(b"\n") and len(received) < _LONGEST:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            part = connection.recv(4096)
            if not part:
                break
            received += part
        message = json.loads(received)
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _differences(mine, other):
    other = other if isinstance(other, dict) else {}
    return [f"{key}: {other.get(key)!r} there, {mine.get(key)!r} here" for key in mine if mine[key] != other.get(key)]

"""What a machine runs to see a rate kept: two nodes with a pod each, one with a rate; fq on the underlay.

    python -m tests.kernels.bandwidth CACHE RESULT

CACHE holds the compiled programs. RESULT gets ``rate``, ``limited`` and ``unlimited``: what was asked for,
what TCP got with it, and what it got without, in bytes a second.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.kernel.bpf.cluster import Cluster, Pod, listening
from tests.kernel.bpf.namespaces import Namespaces

RATE = 1_000_000
_LIMITED_BYTES, _UNLIMITED_BYTES = 4_000_000, 20_000_000
_CHUNK = bytes(64 * 1024)


def main() -> int:
    """Measures and writes the result."""
    cache, result = sys.argv[1], Path(sys.argv[2])
    with Namespaces() as namespaces, ExitStack() as stack:
        cluster = Cluster(namespaces, "/sys/fs/bpf/fimbria", cache, stack)
        sender, receiver = (
            cluster.add_pod(node, name, identity)
            for node, name, identity in zip(cluster.nodes, ("sender", "receiver"), (1001, 1002), strict=True)
        )
        sender.node.namespace.command("tc", "qdisc", "replace", "dev", "eth0", "root", "fq")
        unlimited = _throughput(sender, receiver, _UNLIMITED_BYTES, port=5001)
        sender.node.datapath.update_endpoint(replace(sender.row, rate=RATE))
        limited = _throughput(sender, receiver, _LIMITED_BYTES, port=5002)
    result.write_text(json.dumps({"rate": RATE, "limited": limited, "unlimited": unlimited}))
    return 0


def _throughput(sender: Pod, receiver: Pod, size: int, *, port: int) -> float:
    """Bytes a second that arrive, from the first to the last of ``size``."""
    with listening(receiver, port) as server, sender.socket(socket.SOCK_STREAM) as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        writer = threading.Thread(target=_send, args=(client, size))
        writer.start()
        with accepted:
            received = len(accepted.recv(len(_CHUNK)))
            first, started = received, time.monotonic()
            while received < size:
                data = accepted.recv(len(_CHUNK))
                if not data:
                    raise ConnectionError(f"{received} of {size} bytes arrived")
                received += len(data)
            elapsed = time.monotonic() - started
        writer.join()
    return (received - first) / elapsed


def _send(client: socket.socket, size: int) -> None:
    while size > 0:
        client.sendall(_CHUNK[: min(size, len(_CHUNK))])
        size -= len(_CHUNK)


if __name__ == "__main__":
    sys.exit(main())

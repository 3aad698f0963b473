"""One way of writing files, for C++ and Python: whole or not at all, and never where somebody else points."""

import fcntl
import json
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pandas
import pytest
import torch

import introspect
from introspect import output_files, tables
from introspect.io import GgufWriter, save_safetensors, write_atomically

PACKAGE = Path(introspect.__file__).parent


def gguf(path):
    writer = GgufWriter("test")
    writer.add("w", torch.ones(5))
    writer.write(path)


WRITERS = {
    "gguf": gguf,
    "safetensors": lambda path: save_safetensors(path, [("w", torch.ones(5))]),
    "bytes": lambda path: write_atomically(path, b"x" * 50),
    "text": lambda path: output_files.write_text(path, "é" * 50),
    "table": lambda path: tables.write_table(pandas.DataFrame({"a": [1, 2]}), path),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def temporary(path, digits="0123456789abcdef"):
    """The name of a temporary file for `path`."""
    return path.with_name(f".{path.name}.{digits}.part")


def test_a_file_keeps_its_permissions_and_nothing_is_left_beside_it(tmp_path, write):
    path = tmp_path / "file.csv"
    for mode in (0o600, 0o640, 0o444):
        path.write_text("before")
        path.chmod(mode)
        write(path)
        assert path.stat().st_mode & 0o7777 == mode
        assert path.read_bytes() != b"before"
        assert list(tmp_path.iterdir()) == [path]
        path.unlink()
    before = os.umask(0o027)
    try:
        write(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_keeps_its_owner(tmp_path, write):
    path = tmp_path / "file.csv"
    path.write_text("before")
    os.chown(path, 1234, 5678)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, write):
    (tmp_path / "real").mkdir()
    target, link, second = tmp_path / "real" / "target.csv", tmp_path / "link.csv", tmp_path / "second.csv"
    link.symlink_to("real/target.csv")
    second.symlink_to(link)
    for path in (link, second):  # the link dangles at first
        write(path)
        assert link.is_symlink() and second.is_symlink() and target.is_file() and not target.is_symlink()
        assert path.read_bytes() == target.read_bytes() != b""
        target.write_bytes(b"")
    assert {p.name for p in tmp_path.rglob("*")} == {"real", "target.csv", "link.csv", "second.csv"}


def test_links_in_a_ring_are_an_error(tmp_path, write):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.symlink_to(two)
    two.symlink_to(one)
    with pytest.raises(introspect.IoError, match=r"one\.csv"):
        write(one)


def test_what_is_no_file_is_not_replaced(tmp_path, write):
    folder, pipe = tmp_path / "folder.csv", tmp_path / "pipe.csv"
    folder.mkdir()
    os.mkfifo(pipe)
    (tmp_path / "null.csv").symlink_to("/dev/null")
    for path, what in ((folder, "a folder"), (pipe, "something else"), (tmp_path / "null.csv", "something else")):
        with pytest.raises(introspect.IoError, match=f"{path.name}: must be a file, is {what}"):
            write(path)
    assert Path("/dev/null").is_char_device()
    assert len(list(tmp_path.iterdir())) == 3


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path, write):
    path = tmp_path / "file.csv"
    stale, used, other = temporary(path), temporary(path, "f" * 16), temporary(tmp_path / "other.csv")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link = temporary(path, "e" * 16)
    link.symlink_to(precious)
    for file in (stale, used, other):
        file.write_text("part of a file")
    with used.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(path)
        assert not stale.exists()
        assert used.exists() and other.exists() and link.is_symlink()
        assert precious.read_text() == "precious"
    write(path)
    assert not used.exists()


def test_a_killed_process_does_not_keep_the_next_from_writing(tmp_path):
    path = tmp_path / "file.gguf"
    code = f"""
import os, signal, threading, introspect
from introspect.io import write_atomically
def die():
    while not any(name.endswith(".part") for name in os.listdir({str(tmp_path)!r})): pass
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=die, daemon=True).start()
for _ in range(1000): write_atomically({str(path)!r}, bytes(50_000_000))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    left = [file.name for file in tmp_path.iterdir() if file != path]
    assert all(re.fullmatch(r"\.file\.gguf\.[0-9a-f]{16}\.part", name) for name in left)
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_once_leave_one_of_their_files_whole(tmp_path):
    path = tmp_path / "result.json"
    texts = [json.dumps([n] * 20_000) for n in range(4)]
    problems = []

    def work(text):
        try:
            for _ in range(40):
                output_files.write_text(path, text)
                assert path.read_text() in texts
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    frame = pandas.DataFrame({"a": range(100_000)})
    for write in (
        lambda path: output_files.write_text(path, "x" * 400_000),
        lambda path: tables.write_table(frame, path),
        lambda path: write_atomically(path, bytes(400_000)),
    ):
        path = tmp_path / "file.csv"
        path.write_text("before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(introspect.IoError, match=re.escape(f"{path}: cannot be written")):
                write(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]


def test_long_names_can_be_written(tmp_path):
    path = tmp_path / ("n" * 240)
    write_atomically(path, b"x")
    assert list(tmp_path.iterdir()) == [path]


def test_a_relative_path_is_written_where_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_python_has_no_second_way_of_writing_whole_files():
    """Whatever the package writes under a name of its user's goes through write_atomically."""
    suspicious = re.compile(r"\.part\"\)|\.write_text\(|\.write_bytes\(|\.to_csv\([^)\s]*path|\.rename\(")
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if suspicious.search(file.read_text(encoding="utf-8"))
    }
    assert found <= {"hub/sources.py"}  # downloads, which a later call continues

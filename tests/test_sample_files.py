"""Files shared by the processes of a run: pictures of samples, in memory or on disk, and the counters of workers."""

import errno
import multiprocessing
import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
from PIL import Image

from vgift_plugin.data.shared_file import SharedNumber, Tally
from vgift_plugin.errors import ConfigError
from vgift_plugin.hosts import encoder

HOLD = """
import sys, time
from PIL import Image
from vgift_plugin.hosts import encoder
encoder.MEMORY = sys.argv[1]
with encoder.lossless_file(Image.new("RGB", (8, 8))) as path:
    print(path, flush=True)
    time.sleep(60)
"""


def test_files_of_killed_workers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    (tmp_path / "other.ppm").touch()
    workers = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    try:
        dead, alive = (worker.stdout.readline().strip() for worker in workers)
        workers[0].kill()
        workers[0].wait()
        for path in (dead, alive):
            os.utime(path, (0, 0))  # age says nothing
        encoder.remove_stale_files(str(tmp_path))
        assert sorted(map(str, tmp_path.iterdir())) == sorted([str(tmp_path / "other.ppm"), alive])
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


PICTURE = Image.effect_noise((64, 64), 50).convert("RGB")


def test_a_short_write_is_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(encoder, "MEMORY", str(tmp_path))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    with encoder.lossless_file(PICTURE) as path:
        assert Image.open(path).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_memory_folder_is_told_once_and_the_disk_is_used(tmp_path, monkeypatch, caplog, number):
    """A full file system takes a part of what is written, and fails at the next write."""
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    write = os.write

    def full(fd, data):
        if "/memory/" not in os.readlink(f"/proc/self/fd/{fd}"):
            return write(fd, data)
        if os.fstat(fd).st_size:
            raise OSError(number, os.strerror(number))
        return write(fd, data[:1000])

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(encoder, "MEMORY", str(memory))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    encoder._warn_once.cache_clear()
    for _ in range(3):
        with encoder.lossless_file(PICTURE) as path:
            assert path.startswith(str(disk)) and Image.open(path).tobytes() == PICTURE.tobytes()
    assert not list(memory.iterdir()) and not list(disk.iterdir())
    assert len([message for message in caplog.messages if os.strerror(number) in message]) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(memory))
    with pytest.raises(ConfigError, match=r"no room for the picture of a sample, 12,\d+ bytes, in .*TMPDIR"):
        encoder.lossless_file(PICTURE).__enter__()


def test_a_tight_memory_folder_is_told_at_the_start(monkeypatch, caplog):
    free = SimpleNamespace(f_bavail=64, f_frsize=1_000_000)
    monkeypatch.setattr(encoder, "MEMORY", "/dev/shm")
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    encoder.warn_if_tight(1_000_000, 32)
    assert not caplog.messages
    encoder.warn_if_tight(1_000_000, 33)
    assert "/dev/shm has 64.0 MB left, and samples take up to 33.0 MB there (33 processes)" in caplog.text


def count(number, tally):
    number.value += 1
    tally("task", "reason")


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_counters_are_shared_with_workers_without_memory_files_too(monkeypatch, method, memory):
    if not memory:
        monkeypatch.setattr(os, "memfd_create", lambda name: os.open("/nowhere", os.O_RDONLY))
    number, tally = SharedNumber(-3), Tally()
    assert ("/proc/" in tally._file.path) == memory
    for _ in range(2):
        worker = multiprocessing.get_context(method).Process(target=count, args=(number, tally))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert number.value == -1 and tally.counts() == {"task": {"reason": 2}}
    path = tally._file.path
    del tally
    assert not os.path.exists(path)

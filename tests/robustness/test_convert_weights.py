"""A conversion that a full disk or Ctrl-C ends leaves nothing behind."""
import resource
import shutil
import signal

import pytest


def test_a_disk_that_fills_up_midway_leaves_nothing(refused):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        assert "File too large; nothing was kept" in refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_too_little_space_is_said_before_anything_is_written(refused, monkeypatch):
    def nearly_full(path):
        return shutil._ntuple_diskusage(total=10**9, used=10**9, free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    assert "needs 0.01 GB, but 0.00 GB are free" in refused()


def test_ctrl_c_midway_leaves_nothing(convert, tmp_path, monkeypatch, capsys):
    calls = []

    def show(self, done, note=""):
        calls.append(done)
        assert list((tmp_path / "out").iterdir())             # something is being written
        if len(calls) == 50:
            signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr("conversion.writing.Progress.show", show)
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as stopped:
        convert(tmp_path / "out" / "weights")
    assert stopped.value.code == 130 and len(calls) == 50
    assert list((tmp_path / "out").iterdir()) == []

"""training/lock.py: one process at a time in a run's folder."""
import signal
import subprocess
import sys

import pytest

from training.lock import locked


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    program = """if True:
        import pathlib, sys, time
        from training.lock import locked
        with locked(pathlib.Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", program, out], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="run: another run is writing there"), locked(out):
            pass
        other.send_signal(signal.SIGKILL)
    with locked(out):
        (out / "file").touch()
    assert [file.name for file in out.iterdir()] == ["file"]


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()

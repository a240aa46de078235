"""One process at a time in a run's folder."""
import contextlib
import fcntl
import os

held = []                                                     # file descriptors of this process


@contextlib.contextmanager
def locked(folder):
    """Hold the lock of a folder, which is made if it is missing; it goes again if it stays empty.

    The kernel frees the lock when the process ends, however it ends. Raises ValueError if another
    process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    held.append(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is writing there; wait for its end, or give "
                             "another --out") from None
        except OSError:                                       # a file system without locks
            pass
        yield
    finally:
        held.remove(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):
            folder.rmdir()


def release_locks():
    """Close what a forked process inherited, so that it holds no lock after the run's end."""
    for descriptor in held:
        os.close(descriptor)
    held.clear()

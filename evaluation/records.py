"""Files of a run: one process at a time, lines of JSON that outlive a kill, texts written whole."""
import contextlib
import fcntl
import hashlib
import json
import os

from common.files import written_beside


@contextlib.contextmanager
def locked(folder):
    """Keep a run's folder to this process during the block.

    The system drops the lock of a process that ends, however it ends, so none is ever stale.
    Raises ValueError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"{folder}: another evaluate.py (process {file.read().strip()}) is "
                             "writing there; wait until it has ended, or give another --out"
                             ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_records(file, fields):
    """The objects of a .jsonl file; [] if there is no such file.

    A last line that a kill has cut off is removed from the file. Raises ValueError for a line that
    is no object with these fields.
    """
    if not file.exists():
        return []
    *lines, cut = file.read_bytes().split(b"\n")              # every whole line ends with a newline
    if cut:
        os.truncate(file, file.stat().st_size - len(cut))
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            missing = set(fields) - record.keys()
        except (ValueError, AttributeError):
            missing = fields
        if missing:
            raise ValueError(f"{file}, line {number}: not a record of this file; remove the line")
        records.append(record)
    return records


@contextlib.contextmanager
def disk_errors(file):
    """Raises ValueError, naming the file, if the disk does not take what the block writes."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{file}: could not be written ({error.strerror}); nothing was lost: make "
                         "room, then run the same command again") from None


def append_record(file, record):
    """Add a line and wait until it is on the disk. Raises ValueError if the disk refuses it."""
    with disk_errors(file), open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_text(file, text, encoding="utf-8"):
    """Replace a file, whole or not at all. Raises ValueError if the disk refuses it."""
    with disk_errors(file), written_beside(file) as path:
        path.write_text(text, encoding, errors="replace", newline="")


def digest(*values):
    """Twelve hexadecimal digits that identify the values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

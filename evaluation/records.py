"""Files of a run: lines of JSON that outlive a kill, and texts that are written whole or not."""
import contextlib
import hashlib
import json
import os

from common.files import written_beside


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

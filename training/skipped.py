"""The bad samples of a run: counted once each, named in a file, and too many of them an error."""
import contextlib
import json
import math
from pathlib import Path

from common.files import written_beside

FIRST = 1000            # samples that are read before their share of bad ones is judged


class Skipped:
    """Names the samples that were skipped in `file`, one line of JSON each, and counts them.

    max_bad: the share of bad ones, of all samples seen, that ends a run. state: that of the
    checkpoint to resume from. One process of all calls cut() before training and writes the file.
    """

    def __init__(self, file, max_bad=0.05, state=None):
        self.file, self.max_bad = Path(file), max_bad
        self.count, self.names = 0, set()
        if state:
            self.count, self.names = state["count"], set(state["names"])

    @property
    def state(self):
        return {"count": self.count, "names": sorted(self.names)}

    def cut(self, step):
        """Keep the lines of the first `step` steps: the later ones will be written again."""
        lines = []
        if self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError):  # half a line
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        with written_beside(self.file) as path:
            path.write_text("".join(kept), encoding="utf-8")

    def add(self, entries, write=True):
        """Count what was skipped in one step, a list of {"step", "sample", "reason"}."""
        self.count += len(entries)
        self.names |= {entry["sample"] for entry in entries}
        if entries and write:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))

    def check(self, seen):
        """Raise ValueError if too many of the `seen` distinct samples were bad.

        A share of max_bad is expected to vary by the square root of the count: the run ends when
        three times that is exceeded, not in an unlucky stretch.
        """
        expected = self.max_bad * max(seen, FIRST)
        if len(self.names) > expected + 3 * math.sqrt(expected):
            raise ValueError(
                f"{self.file}: {len(self.names)} of {seen} samples were bad, more than --max-bad "
                f"{self.max_bad}; repair or remove them, or give a higher --max-bad")

"""The bad samples of a run: counted, named in a file, and too many of them an error."""
import contextlib
import json
from collections import deque
from pathlib import Path

from common.files import written_beside

MAX_BAD, RECENT = 50, 1000      # at most 50 of the last 1000 samples may be bad: 5 %


class Skipped:
    """Counts the samples that were skipped, and names them in `file`, one line of JSON each.

    state: that of the checkpoint to resume from. One process of all calls cut() before training.
    """

    def __init__(self, file, state=None):
        self.file, self.count, self.recent = Path(file), 0, deque(maxlen=RECENT)
        if state:
            self.count = state["count"]
            self.recent.extend(state["recent"])

    @property
    def state(self):
        return {"count": self.count, "recent": list(self.recent)}

    def cut(self, step):
        """Keep the lines of the first `step` steps: the later ones will be written again."""
        lines = []
        if self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError):             # half a line, where a run was killed
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        with written_beside(self.file) as path:
            path.write_text("".join(kept), encoding="utf-8")

    def add(self, batches):
        """Count and name what was skipped for the batches of one step. Returns their number.

        Raises ValueError if more than MAX_BAD of the last RECENT samples were bad.
        """
        skipped = [entry for batch in batches for entry in batch.skipped]
        self.count += len(skipped)
        self.recent.extend([1] * len(skipped) + [0] * sum(len(batch.texts) for batch in batches))
        if skipped:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in skipped))
        bad = sum(self.recent)
        if bad > MAX_BAD:
            raise ValueError(
                f"{self.file}: {bad} of the last {len(self.recent)} samples were bad, more than "
                f"{MAX_BAD} of {RECENT}; repair these samples or remove them from the data")
        return len(skipped)

"""Progress of long work: what, how far, how fast, how long still."""
import sys
import time


class Progress:
    """What, how far, how fast, how long still: a line rewritten on a terminal, a plain one every 10 seconds elsewhere.

    show(done, note) may be called as often as one likes; `total` and `done` count in `unit`. before: what was done
    earlier, by a run that this one goes on with.
    """

    def __init__(self, what, total, unit, stream=sys.stderr, before=0):
        self.what, self.total, self.unit, self.stream, self.before = what, total, unit, stream, before
        self.start, self.last = time.monotonic(), 0.0

    def show(self, done, note=""):
        now = time.monotonic()
        terminal, finished = self.stream.isatty(), done >= self.total
        if now - self.last < (0.2 if terminal else 10) and not finished:
            return
        self.last = now
        speed = (done - self.before) / max(now - self.start, 1e-9)
        left = (self.total - done) / max(speed, 1e-9)
        time_text = f"{now - self.start:.0f} s" if finished else f"{int(left) // 60}:{int(left) % 60:02d} left"
        line = f"{self.what} {done:g}/{self.total:g} {self.unit}, {speed:.3g} {self.unit}/s, {time_text}"
        line += f", {note}" if note else ""
        print(f"\r\033[K{line}" if terminal else line, end="\n" if finished or not terminal else "", file=self.stream,
              flush=True)

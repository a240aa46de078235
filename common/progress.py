"""Progress of long work: how much is done, how fast, how much time is left."""
import sys
import time


class Progress:
    """On a terminal one line that is rewritten; elsewhere a line every 10 seconds.

    total and the `done` of show() are in `unit`. before: what an earlier run had done, when this
    one resumes it. show() may be called as often as one likes.
    """

    def __init__(self, what, total, unit, stream=sys.stderr, before=0):
        self.what, self.unit, self.stream = what, unit, stream
        self.total, self.before = total, before
        self.start, self.last = time.monotonic(), 0.0

    def show(self, done, note=""):
        now = time.monotonic()
        terminal = self.stream.isatty()
        finished = done >= self.total
        interval = 0.2 if terminal else 10                    # seconds
        if now - self.last < interval and not finished:
            return
        self.last = now
        line = self.line(done, now - self.start, finished)
        if note:
            line += f", {note}"
        start, end = ("\r\033[K", "") if terminal else ("", "\n")
        if finished:
            end = "\n"
        print(start + line, end=end, file=self.stream, flush=True)

    def say(self, text):
        """Print a line of its own above the progress."""
        start = "\r\033[K" if self.stream.isatty() else ""
        print(start + text, file=self.stream, flush=True)

    def line(self, done, seconds, finished):
        """For example "questions 30/100 answers, 2.5 answers/s, 0:28 left"."""
        speed = (done - self.before) / max(seconds, 1e-9)
        if finished:
            time_text = f"{seconds:.0f} s"
        else:
            left = int((self.total - done) / max(speed, 1e-9))
            time_text = f"{left // 60}:{left % 60:02d} left"
        amount = f"{done:g}/{self.total:g} {self.unit}"
        return f"{self.what} {amount}, {speed:.3g} {self.unit}/s, {time_text}"

"""Run a command and print its time and its peak memory: python tests/peak_memory.py COMMAND ...

Anonymous memory is what the command allocates itself. Pages of mapped files are counted apart: the
kernel takes them back when it needs room. Linux only.
"""
import re
import subprocess
import sys
import time


def measure(command):
    """Run `command` (a list) -> exit code, seconds, and the peaks of RssAnon and of
    RssAnon + RssFile in bytes."""
    start, anonymous, resident = time.monotonic(), 0, 0
    running = subprocess.Popen(command)
    while running.poll() is None:
        try:
            text = open(f"/proc/{running.pid}/status").read()
        except OSError:
            continue
        status = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", text))
        if status:
            own, mapped = int(status["RssAnon"]) * 1024, int(status["RssFile"]) * 1024
            anonymous = max(anonymous, own)
            resident = max(resident, own + mapped)
        time.sleep(0.02)
    return running.returncode, time.monotonic() - start, anonymous, resident


if __name__ == "__main__":
    code, seconds, anonymous, resident = measure(sys.argv[1:])
    print(f"{seconds:.1f} s, peak {anonymous / 1e9:.2f} GB anonymous, "
          f"{resident / 1e9:.2f} GB with mapped files")
    sys.exit(code)

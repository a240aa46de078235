"""Run a command and print its time and its peak memory: python tests/peak_memory.py COMMAND ...

Anonymous memory is what the command holds itself. Pages of mapped files are counted apart: the kernel takes them back
when it needs room. Linux only.
"""
import re
import subprocess
import sys
import time


def measure(command):
    """Run `command` (a list) -> exit code, seconds, and the largest RssAnon and RssAnon + RssFile seen, in bytes."""
    start, anonymous, resident = time.monotonic(), 0, 0
    running = subprocess.Popen(command)
    while running.poll() is None:
        try:
            status = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", open(f"/proc/{running.pid}/status").read()))
        except OSError:
            continue
        if status:
            anonymous = max(anonymous, int(status["RssAnon"]) * 1024)
            resident = max(resident, (int(status["RssAnon"]) + int(status["RssFile"])) * 1024)
        time.sleep(0.02)
    return running.returncode, time.monotonic() - start, anonymous, resident


if __name__ == "__main__":
    code, seconds, anonymous, resident = measure(sys.argv[1:])
    print(f"{seconds:.1f} s, peak {anonymous / 1e9:.2f} GB anonymous, {resident / 1e9:.2f} GB with mapped files")
    sys.exit(code)

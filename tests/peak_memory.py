"""Run a command, then print its time and peak memory: python tests/peak_memory.py COMMAND ...

Anonymous memory is what the command allocates itself; the kernel takes back the pages of mapped
files, counted apart, when it needs room. Linux only.
"""
import re
import resource
import subprocess
import sys
import time

if __name__ == "__main__":
    start, own, mapped = time.monotonic(), 0, 0
    running = subprocess.Popen(sys.argv[1:])
    while running.poll() is None:
        with open(f"/proc/{running.pid}/status") as status:
            kilobytes = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", status.read()))
        own = max(own, int(kilobytes.get("RssAnon", 0)))
        mapped = max(mapped, int(kilobytes.get("RssFile", 0)))
        time.sleep(0.02)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - start:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of CPU), "
          f"peak {own / 1e6:.2f} GB of its own, "
          f"{mapped / 1e6:.2f} GB of mapped files")
    sys.exit(running.returncode)

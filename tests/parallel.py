"""Run the files of tests in several processes, a file at a time: one for each core, at most four.

The processes are forks of the one that collected the tests; a number that they share says which
file comes next. What they find is reported here, file by file.
"""
import contextlib
import multiprocessing.connection
import os
import sys
from itertools import groupby

import pytest
import torch


class Sender:
    """A plugin of a fork: sends the reports of its tests."""

    def __init__(self, config, connection):
        self.config, self.connection = config, connection

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.connection.send((report.location, data))


def files_to_run(files, following):
    """Yield (test, the test after it), of files that no other process has taken."""
    def claimed():
        while True:
            with following.get_lock():
                i, following.value = following.value, following.value + 1
            if i >= len(files):
                return
            yield from files[i]
    tests = claimed()
    test = next(tests, None)
    while test is not None:
        after = next(tests, None)
        yield test, after
        test = after


def run_some(config, files, following, connection):
    """A fork's work. Its output goes to files of its own, as that of every test does."""
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(Sender(config, connection))
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    with contextlib.suppress(KeyboardInterrupt):
        for test, after in files_to_run(files, following):
            config.hook.pytest_runtest_protocol(item=test, nextitem=after)
        connection.send(None)


def pytest_runtestloop(session):
    """In place of pytest's own loop, where there is something to gain and a fork does no harm."""
    config = session.config
    files = [list(tests) for _, tests in groupby(session.items, key=lambda test: test.path)]
    count = min(4, os.cpu_count() or 1, len(files))
    if (count < 2 or sys.platform != "linux" or config.option.usepdb or config.option.collectonly
            or session.testsfailed or torch.cuda.is_available()):
        return None
    fork = multiprocessing.get_context("fork")
    following, running = fork.Value("i", 0), []
    for _ in range(count):
        here, there = fork.Pipe(duplex=False)
        fork.Process(target=run_some, args=(config, files, following, there)).start()
        there.close()
        running.append(here)
    while running:
        for connection in multiprocessing.connection.wait(running):
            try:
                found = connection.recv()
            except EOFError:
                pytest.exit("A process ended in the middle of a test.", returncode=3)
            if found is None:
                running.remove(connection)
                continue
            location, data = found
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            config.hook.pytest_runtest_logreport(report=report)
            if session.shouldfail:
                following.value = len(files)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    return True

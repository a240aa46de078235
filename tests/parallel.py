"""Run the files of tests in several processes, a file at a time: one for each core, at most four.

The processes are forks of the one that collected the tests; a number that they share says which
file comes next. Their reports are sent here, where they are shown as they come.
"""
import contextlib
import multiprocessing.connection
import os
import sys
from itertools import groupby

import pytest
import torch


def run_some(session, files, following, connection):
    """A fork's work. Its output goes to files of its own, as that of every test does."""
    class Sender:
        def pytest_runtest_logreport(self, report):
            connection.send(report)
    plugins = session.config.pluginmanager
    plugins.unregister(name="terminalreporter")
    plugins.register(Sender())
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            with following.get_lock():
                number, following.value = following.value, following.value + 1
            if number >= len(files):
                break
            tests = files[number]
            # After the last test of a file, only what belongs to the session stays set up.
            for test, after in zip(tests, [*tests[1:], session], strict=True):
                session.config.hook.pytest_runtest_protocol(item=test, nextitem=after)
        connection.send(None)


def pytest_runtestloop(session):
    """In place of pytest's own loop, where there is something to gain and a fork does no harm."""
    option = session.config.option
    files = [list(tests) for _, tests in groupby(session.items, key=lambda test: test.path)]
    count = min(4, os.cpu_count() or 1, len(files))
    if (count < 2 or sys.platform != "linux" or option.usepdb or option.collectonly
            or session.testsfailed or torch.cuda.is_available()):
        return None
    session.config._tmp_path_factory.getbasetemp()            # one for all, which is cleaned later
    fork = multiprocessing.get_context("fork")
    following, running = fork.Value("i", 0), []
    for _ in range(count):
        here, there = fork.Pipe(duplex=False)
        fork.Process(target=run_some, args=(session, files, following, there)).start()
        there.close()
        running.append(here)
    while running:
        for connection in multiprocessing.connection.wait(running):
            try:
                report = connection.recv()
            except EOFError:
                pytest.exit("A process ended in the middle of a test.", returncode=3)
            if report is None:
                running.remove(connection)
                continue
            session.config.hook.pytest_runtest_logreport(report=report)
            if session.shouldfail:
                following.value = len(files)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    return True

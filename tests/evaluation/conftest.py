"""A server that judges, for the tests of evaluation/."""
import threading

import pytest

from evaluation.server import ServerJudge
from tests.evaluation.bad_server import KEY, BadServer


@pytest.fixture
def server(monkeypatch):
    """A BadServer that runs; KEY is in the environment."""
    server = BadServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01},
                     daemon=True).start()
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that judges wait, which take no time."""
    seconds = []
    monkeypatch.setattr(ServerJudge, "sleep", staticmethod(seconds.append))
    return seconds

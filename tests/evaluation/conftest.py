"""A benchmark folder, a server that judges, runs of evaluate.py with models that answer at once."""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from PIL import Image

import evaluate
from evaluation import answers, judges
from tests import conftest

KEY = "Sk-secret-0123456789"


def gives(score, **others):
    """A reply of the server with a verdict, or with one for each letter."""
    verdict = {"reason": "r", "score": score} if not others else {
        letter: {"reason": "r", "score": points} for letter, points in others.items()}
    return says(json.dumps(verdict))


def says(content):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


@pytest.fixture
def benchmark_folder(tmp_path):
    """A folder with a picture or more of each benchmark, and what else may lie there."""
    folder = tmp_path / "benchmark"
    pictures = ("IDC/1.png", "IDC/2.webp", "IDC/10.gif", "ISAC/1.bmp", "ICRC/01.jpg",
                "MDIUC/1.jpeg")
    for i, name in enumerate(pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 16), (40 * i, 90, 200)).save(folder / name)
    for name in ("IDC/notes.txt", "IDC/3.txt", "IDC/cover.jpg", "ISAC/Thumbs.db", "ISAC/2"):
        (folder / name).write_text("not a picture")
    return folder


@pytest.fixture
def server(monkeypatch):
    """A server that replies what its `script` says, (status, body), seconds to wait within a reply,
    or bytes to send as they are; and a 3 when that is empty. requests: (headers, body)."""
    found = SimpleNamespace(script=[], requests=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append((dict(self.headers), json.loads(body)))
            letters = found.requests[-1][1]["messages"][0]["content"]
            usual = gives(3, A=3, B=3) if '"B": [' in letters else gives(3)
            reply = found.script.pop(0) if found.script else usual
            if isinstance(reply, bytes):
                self.wfile.write(reply)
                self.close_connection = True
                return
            seconds, (status, text) = (reply, usual) if isinstance(reply, float) else (0, reply)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            for start in range(0, len(text), 20):
                time.sleep(seconds)
                self.wfile.write(text[start:start + 20].encode())

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None                       # a client that left in the middle
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01},
                     daemon=True).start()
    found.flags = ("--judge", f"http://127.0.0.1:{http.server_port}/v1", "--judge-model", "judge")
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setattr(judges, "WAITS", (0.01, 0.01, 0))
    monkeypatch.setenv("no_proxy", "*")
    yield found
    http.shutdown()
    http.server_close()


@pytest.fixture
def run(benchmark_folder, tmp_path, capsys):
    """run(*flags): evaluate.py on the benchmark folder -> exit code, stdout, stderr."""
    def run(*flags):
        code = conftest.run(evaluate.main, evaluate.command_line(), benchmark_folder, *flags,
                            "--out", tmp_path / "run")
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def quick(run, tmp_path, monkeypatch):
    """quick(*flags, models=names): run with models that say what was asked. quick.asked: (model,
    item name) of all that was asked; quick.answer(model, item) -> answers; quick.out: the run."""
    def dialogue(model, item, settings):
        quick.asked.append((model, item.name))
        return quick.answer(model, item)

    def quick(*flags, models=("Art", "Mini")):
        adapters = [tmp_path / f"{name}.safetensors" for name in models]
        for file in adapters:
            if not file.exists():
                file.write_text(file.stem)
        return run("--adapter", *adapters, *flags)

    quick.asked, quick.out = [], tmp_path / "run"
    quick.answer = lambda model, item: [f"{model} says of {item.name}: {question}"
                                        for question in item.questions]
    monkeypatch.setattr(answers, "load", lambda args: args.adapter.stem)
    monkeypatch.setattr(answers, "dialogue", dialogue)
    return quick

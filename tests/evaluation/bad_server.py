"""A server that speaks the OpenAI chat API as badly as a test wants."""
import contextlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-0123456789"


def completion(content):
    """The body of a reply that says `content`."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def says(content):
    """A reply that says `content`."""
    return 200, {}, completion(content)


def gives(score, reason="r"):
    """A reply with a verdict."""
    return says(json.dumps({"reason": reason, "score": score}))


def drip(server_file, seconds):
    """Headers that come byte by byte and never end."""
    server_file.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    for _ in range(int(seconds / 0.02)):
        server_file.write(b"x")
        server_file.flush()
        time.sleep(0.02)


GOOD = gives(3, "fine")
DRIP = "drip"


class BadServer(ThreadingHTTPServer):
    """Replies what `script` says, and GOOD when it is empty.

    script: a list of replies (status, headers, body), of seconds to sleep before GOOD, of "close"
    or of DRIP. requests: (path, headers, body) of all that was asked.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.handle_error = lambda *_: None                   # a client that left in the middle
        self.flags = ("--judge", self.url, "--judge-model", "judge")


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        reply = self.server.script.pop(0) if self.server.script else GOOD
        if reply == "close":
            self.close_connection = True
            return
        if reply == DRIP:
            with contextlib.suppress(OSError):                # nobody listens any more
                drip(self.wfile, seconds=2)
            self.close_connection = True
            return
        if isinstance(reply, float):
            time.sleep(reply)
            reply = GOOD
        status, headers, text = reply
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(text.encode()))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST

    def log_message(self, *_):
        pass

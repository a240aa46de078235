"""A judge behind the OpenAI chat API: requests, refusals, waiting, and one deadline for each."""
import email.utils
import http.client
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from common.files import open_image
from common.page import data_url
from evaluation.verdicts import judge_prompt, together_prompt, verdict, verdicts

TRIES = 5                         # requests until the server counts as out of order
REPLIES = 3                       # unusable replies until an answer stays unjudged
FAILURES = 3                      # answers in a row without any reply until the run stops
LONGEST_WAIT = 120                # seconds that a server may ask us to wait
LONGEST_REPLY = 10 << 20          # bytes
LONGEST_COMPLAINT = 10_000        # bytes of an error that are read
PICTURE_SIZE = 768                # pixels, of the longer side of a picture that is sent
AGAIN = "then run the same command again"


class Stopped(ValueError):
    """The server refuses or cannot be reached. Asking it again would change nothing."""


class NoReply(Exception):
    """The server did not reply. again: asking once more may help; wait: seconds it asked for."""

    def __init__(self, message, again=True, wait=None):
        super().__init__(message)
        self.again, self.wait = again, wait


class NoRedirections(urllib.request.HTTPRedirectHandler):
    """The key and the answers are for the server that the user named, and for no other."""

    def redirect_request(self, *_):
        return None


def seconds_to_wait(headers):
    """The seconds of a Retry-After header, which is a number or a date; None without one."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return int(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0, date.timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def checked_url(url):
    """The parts of --judge as urlsplit gives them. Raises ValueError if it is no server's URL."""
    host, port, path = r"([\w.-]+|\[[0-9a-fA-F:.]+\])", r"(:\d+)?", r"(/[!-~]*)?"
    if re.fullmatch(f"https?://{host}{port}{path}", url) and not re.search("[@?#]", url):
        return urllib.parse.urlsplit(url)
    shown = re.sub(r"//.*@|[?#].*", "...", url)               # no password, no key
    raise ValueError(f"--judge {shown}: not a URL such as http://127.0.0.1:8000/v1 (without a "
                     "user's name, a key or a query; the key comes from JUDGE_API_KEY)")


def key_from_environment():
    """JUDGE_API_KEY, else OPENAI_API_KEY, else "". Raises ValueError for odd characters in it."""
    key = os.environ.get("JUDGE_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
    key = key.strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ValueError("the key in JUDGE_API_KEY or OPENAI_API_KEY has a character that no key "
                         "has")
    return key


def within(seconds, function):
    """function(), computed by another thread. Raises TimeoutError after that many seconds.

    A socket's timeout starts again with every byte; this one does not.
    """
    outcome = []

    def run():
        try:
            outcome.append((function(), None))
        except BaseException as error:                        # raised below, in the right thread
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    [(value, error)] = outcome
    if error is not None:
        raise error
    return value


def error_object(text):
    """(message, whether the account's quota is used up) of an API's {"error": ...}; else ("", ...).
    """
    try:
        error = json.loads(text)["error"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return "", False
    if isinstance(error, dict):
        no_quota = "insufficient_quota" in (error.get("code"), error.get("type"))
        return str(error.get("message") or error.get("code") or error.get("type") or ""), no_quota
    return str(error or ""), False


def text_of(content):
    """The text of a message's content, which may be a list of parts; "" if it has none."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content
                 if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""       # a refusal, or a call of a tool


class ServerJudge:
    """A model behind the OpenAI chat API.

    url: https://host/v1, with or without /chat/completions. sees_image: send the picture along, as
    a data URL. timeout: seconds for a whole exchange, from the connection to the last byte of the
    reply. options: more fields of the API, for example {"temperature": 0}. The key from the
    environment is sent to that server and shown nowhere.
    """
    sleep = staticmethod(time.sleep)

    def __init__(self, url, model, sees_image=False, timeout=120, options=None):
        parts = checked_url(url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        base = f"{parts.scheme}://{parts.netloc}{path}"
        self.url, self.model = f"{base}/chat/completions", model
        self.sees_image, self.timeout, self.options = sees_image, timeout, options or {}
        self.name = f"{model} at {base}"                      # scores.jsonl knows it by this name
        if sees_image:
            self.name += ", seeing the picture"
        if self.options:
            self.name += f", {json.dumps(self.options, sort_keys=True)}"
        self.key = key_from_environment()
        self.opener = urllib.request.build_opener(NoRedirections)
        self.reached = False                                  # whether it has ever responded
        self.failures = 0                                     # answers in a row without a reply

    def without_key(self, text):
        """What a server says, which may quote the key."""
        return text.replace(self.key, "[key]") if len(self.key) >= 8 else text

    def in_one_line(self, text):
        """The words of a server's error, without the key and what a terminal would obey."""
        text = self.without_key(text)
        text = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(text.split())[:200]

    # ---- One request

    def ask(self, messages):
        """One request. Returns the text of the reply. Raises NoReply and Stopped."""
        body = json.dumps({"model": self.model, "messages": messages} | self.options).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            status, headers, data = within(self.timeout, lambda: self.exchange(request))
        except (OSError, http.client.HTTPException) as error:
            raise self.connection_failure(error) from None
        self.reached = True
        text = data.decode(errors="replace")
        message, no_quota = error_object(text)
        if not 200 <= status < 300 or message:
            raise self.refusal(status, headers, message or re.sub(r"<[^>]*>", " ", text), no_quota)
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError, ValueError, RecursionError):
            raise NoReply("what the server sent is no chat completion") from None
        return self.without_key(text_of(content))

    def exchange(self, request):
        """(status, headers, body) of the response to a request. Runs in a thread of its own."""
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                return response.status, response.headers, self.read(response)
        except urllib.error.HTTPError as error:
            with error:
                body = b""
                try:
                    body = error.read(LONGEST_COMPLAINT)
                except (OSError, http.client.HTTPException):
                    pass                                      # the status says enough
                return error.code, error.headers, body

    def read(self, response):
        """The body of a response. Raises NoReply if it is too long or not whole."""
        deadline, body = time.monotonic() + self.timeout, b""
        while chunk := response.read1(65536):
            body += chunk
            if len(body) > LONGEST_REPLY:
                raise NoReply(f"the reply is longer than {LONGEST_REPLY >> 20} MiB", again=False)
            if time.monotonic() > deadline:                   # nobody waits for this thread then
                raise TimeoutError
        if response.length:
            raise NoReply("the connection closed within the reply")
        return body

    def refusal(self, status, headers, text, no_quota):
        """The NoReply or Stopped that an error of the API means."""
        message, words = f"{status} {http.client.responses.get(status, '')}", self.in_one_line(text)
        if words:
            message += f": {words}"
        says, wait = f"the judge at {self.url} says {message}", seconds_to_wait(headers)
        if no_quota:
            return Stopped(f"{says}; the account has no quota left: add credit or set another key, "
                           f"{AGAIN}")
        if status in (401, 403):
            return Stopped(f"{says}; set JUDGE_API_KEY (or OPENAI_API_KEY) to a key that it "
                           f"accepts, {AGAIN}")
        if 300 <= status < 400 or status in (404, 405):
            return Stopped(f"{says}; check --judge and --judge-model")
        if wait is not None and wait > LONGEST_WAIT:
            return Stopped(f"{says}; it asks to wait {wait:.0f} s: wait, {AGAIN}")
        again = status in (408, 409, 425, 429) or status < 300 or status >= 500
        return NoReply(message, again, wait)

    def connection_failure(self, error):
        """The NoReply or Stopped that an error of the connection means."""
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or str(cause) or repr(cause)
        no_certificate = isinstance(cause, ssl.SSLError)
        if isinstance(error, urllib.error.URLError) and (no_certificate or not self.reached):
            return Stopped(f"the judge at {self.url} cannot be reached ({reason}); start it or "
                           f"check --judge, {AGAIN}")
        if isinstance(cause, TimeoutError):
            return NoReply(f"no whole reply within {self.timeout:g} s")
        return NoReply(f"the connection failed ({reason})")

    # ---- As often as it helps

    def reply(self, messages):
        """The text of the reply, after waiting and asking again where that may help.

        Raises NoReply and Stopped.
        """
        for attempt in range(TRIES):
            try:
                return self.ask(messages)
            except NoReply as error:
                if not error.again or attempt == TRIES - 1:
                    raise
                wait = 2.0 ** attempt if error.wait is None else error.wait
                print(f"the judge: {error}; asking again in {wait:.0f} s", file=sys.stderr,
                      flush=True)
                self.sleep(wait)

    def __call__(self, item, answers):
        """The verdict on one model's answers to an Item.

        That is {"score": 0 to 5 or None, "reason": text, "replies": how many there were}. Raises
        Stopped when the server refuses, cannot be reached, or has failed FAILURES times in a row.
        """
        prompt = judge_prompt(item.benchmark, item.questions, answers, self.sees_image)
        found, reason, replies = self.usable(item, prompt, verdict)
        if found is None:
            return {"score": None, "reason": reason, "replies": replies}
        return found._asdict() | {"replies": replies}

    def together(self, item, answers):
        """The verdicts on several models' answers to an Item, asked for at once.

        answers: {letter: answers}. Returns ({letter: {"score", "reason"}}, replies). Raises
        Stopped.
        """
        prompt = together_prompt(item.benchmark, item.questions, answers, self.sees_image)
        found, reason, replies = self.usable(item, prompt, lambda text: verdicts(text, answers))
        if found is None:
            return {letter: {"score": None, "reason": reason} for letter in answers}, replies
        return {letter: said._asdict() for letter, said in found.items()}, replies

    def usable(self, item, prompt, parse):
        """(what `parse` reads in the first usable reply or None, why there is none, replies)."""
        picture = []
        if self.sees_image:
            url = data_url(open_image(item.file), PICTURE_SIZE)
            picture = [{"type": "image_url", "image_url": {"url": url}}]
        text = prompt
        for replies in range(1, REPLIES + 1):
            content = [{"type": "text", "text": text}, *picture] if picture else text
            try:
                reply = self.reply([{"role": "user", "content": content}])
            except NoReply as error:
                self.failures += 1
                if self.failures == FAILURES:
                    raise Stopped(
                        f"the judge at {self.url} failed three answers in a row, the last by: "
                        f"{error}; run the same command again when it works") from None
                return None, f"no reply: {error}", replies - 1
            self.failures = 0
            try:
                return parse(reply), "", replies
            except ValueError as error:
                problem = str(error)
                text = f"{prompt}\n\nYour last reply could not be used: {problem}."
        return None, f"{REPLIES} replies, none usable: {problem}", REPLIES

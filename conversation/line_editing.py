"""What a terminal does while someone types: Tab, and the history of earlier sessions."""
import contextlib
import os
import re
from pathlib import Path

HISTORY_LINES = 1000


def history_file():
    """Where the typed lines are kept: in the user's state folder, as XDG defines it."""
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not folder.is_absolute():
        folder = Path.home() / ".local" / "state"
    return folder / "artgpt4" / "history"


def matching_paths(text):
    """The paths that begin with a text, in which quotes and escaped spaces may stand."""
    folder, name = os.path.split(re.sub(r"\\(.)", r"\1", text).lstrip("'\""))
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda e: e.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        hidden = entry.name.startswith(".") and not name.startswith(".")
        if entry.name.startswith(name) and not hidden:
            found.append(os.path.join(folder, entry.name) + ("/" if entry.is_dir() else ""))
    return found


def completions(line, commands, settings):
    """The lines that the beginning of one may become: a command, a setting, a path.

    commands: {name: what follows it}, which is PATH, FILE or another text. settings: names. A
    question has none.
    """
    name, space, rest = line.partition(" ")
    if not name.startswith("/"):
        return []
    if not space:
        return [known + (" " if argument else "") for known, argument in commands.items()
                if known.startswith(name.lower())]
    if name.lower() == "/set":
        beginning = rest.lower().replace("-", "_")
        return [f"{name} {setting} " for setting in settings if setting.startswith(beginning)]
    if commands.get(name.lower()) in ("PATH", "FILE"):
        return [f"{name} {path}" for path in matching_paths(rest)]
    return []


@contextlib.contextmanager
def line_editing(complete, history=None):
    """Lines that input() reads in this block are edited by readline, where Python has it.

    complete: a function from the beginning of a line to the lines that it may become. history: a
    file of lines typed earlier, to which those of this block are added.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    tab = "bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete"
    readline.parse_and_bind(tab)
    readline.set_completer_delims("")                         # a line is one word, with its spaces
    readline.set_completer(lambda line, i: [*complete(line), None][i])
    if history:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    before = readline.get_current_history_length()
    try:
        yield
    finally:
        if history:
            with contextlib.suppress(OSError):                # a history is no reason to fail
                keep_history(readline, history, readline.get_current_history_length() - before)


def keep_history(readline, history, count):
    """Add the last `count` lines to a history file, which only its owner can read."""
    history.parent.mkdir(parents=True, exist_ok=True)
    history.touch(mode=0o600)
    readline.set_history_length(HISTORY_LINES)
    readline.append_history_file(count, history)

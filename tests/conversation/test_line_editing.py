"""conversation/line_editing.py: what Tab completes, and where the history lies."""
from pathlib import Path

import pytest

from conversation.line_editing import completions, history_file, matching_paths

COMMANDS = {"/image": "PATH", "/save": "FILE", "/set": "[NAME VALUE]", "/help": ""}
SETTINGS = ("temperature", "top_p", "seed")


@pytest.mark.parametrize("line, found", [
    ("/", ["/image ", "/save ", "/set ", "/help"]),
    ("/S", ["/save ", "/set "]),
    ("/q", []),
    ("/set t", ["/set temperature ", "/set top_p "]),
    ("/set top-", ["/set top_p "]),
    ("/set ", ["/set temperature ", "/set top_p ", "/set seed "]),
    ("/image a", ["/image a/", "/image a b.png"]),
    ("/image a\\ b", ["/image a b.png"]),
    ("/save 'a b", ["/save a b.png"]),
    ("/save a/", ["/save a/x.json"]),
    ("/image gone/", []),
    ("/help a", []),
    ("", []),
    ("a", []),
    ("What is in a", []),
])
def test_commands_settings_and_paths_are_completed_and_questions_are_not(line, found, tmp_path,
                                                                        monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("a b.png", "a/x.json", ".hidden"):
        (tmp_path / name).touch()
    assert completions(line, COMMANDS, SETTINGS) == found


def test_paths_are_completed_at_home_and_hidden_ones_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("boat.png", ".hidden"):
        (tmp_path / name).touch()
    assert matching_paths("~/") == ["~/boat.png"]
    assert matching_paths("~/.h") == ["~/.hidden"]


def test_the_history_lies_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for state in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", state)
        assert history_file() == tmp_path / ".local" / "state" / "artgpt4" / "history"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert history_file() == Path("/var/state/artgpt4/history")

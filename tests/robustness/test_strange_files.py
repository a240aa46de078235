"""Pipes, loops, junk, foreign formats, kills: no hang, no traceback, nothing left behind."""
import fcntl
import gzip
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

import convert_weights
from common.loading import load_folder
from conversion import writing
from conversion.writing import LOCK, folder_beside, remove_leftovers
from tests.conftest import released


# ---- What is not a checkpoint


def packed(kind):
    """The bytes of a small tar or zip archive."""
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", "b")
    return file.getvalue()


FOREIGN = {
    "a GGUF file, for llama.cpp": b"GGUF\x03\0\0\0",
    "compressed with gzip; unpack it first": gzip.compress(b"x"),
    "a compressed archive; unpack": b"\xfd7zXZ\0",
    "a web page, not the file itself": b"\n<!DOCTYPE html><html>",
    "a picture or a PDF": b"\x89PNG\r\n",
    "a tar archive; unpack it first": packed("tar"),
    "a zip archive, but not one of torch.save": packed("zip"),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "empty (0 bytes); download it again": b"",
    "a NumPy or HDF5 file": b"\x93NUMPY\x01\0",
    "JSON, not a checkpoint": b'{"error": "not found"}',
    "damaged, cut short": b"\x10\0\0\0\0\0\0\0{\"a\": 1}",
    "damaged, cut short, or not a checkpoint": b"some text",
}


@pytest.mark.parametrize("said", FOREIGN)
def test_the_first_bytes_tell_what_a_file_is(refused, tmp_path, said):
    (tmp_path / "file").write_bytes(FOREIGN[said])
    assert f"{tmp_path}/file: {said}" in refused(vit=tmp_path / "file")


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_would_run_code_is_said_only_of_what_would(refused, tmp_path):
    file = tmp_path / "odd.pth"
    for odd, said in (
            (Calls(os.system, "true"), "would run code (posix.system)"),
            (Calls(eval, "1"), "would run code (eval)"),
            (Calls(slice, 1), "holds slice, which is neither"),
            (Calls(subprocess.call, "true"), "would run code (commands.call)"),
            (convert_weights.argparse.Namespace(a=1), "holds argparse.Namespace, which is"),
            (Path("x"), "holds pathlib.PosixPath, which is neither a tensor nor")):
        torch.save({"model": released("pretrained_minigpt4.pth"), "odd": odd}, file)
        assert f"odd.pth: {said}" in refused(vit=file)
    file.write_bytes(pickle.dumps([1], protocol=0) + b"config text\n")
    assert "would run code" not in refused(vit=file)


def test_pipes_devices_sockets_and_folders_are_no_files(refused, vicuna, weights, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name in ("pipe", "zero", "socket"):
        assert f"{name}: a pipe, a device or a socket" in refused(vit=tmp_path / name)
    for name in ("config.json", "tokenizer.model"):
        folder = vicuna()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert f"{name}: a pipe, a device or a socket" in refused(llm=folder)
    server.close()
    folder = tmp_path / "weights"
    folder.mkdir()
    for file in weights["artgpt4"].iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "vision.safetensors").unlink()
    os.mkfifo(folder / "vision.safetensors")
    with pytest.raises(ValueError, match="vision.safetensors: a pipe, a device or a socket"):
        load_folder(folder)


def test_an_unreadable_file_is_named(refused, checkpoints, tmp_path, monkeypatch):
    file, original = tmp_path / "vit.pth", Path.open
    file.write_bytes(b"x")

    def deny(path, *args, **kwargs):
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)
    monkeypatch.setattr(Path, "open", deny)
    assert "vit.pth: cannot be read (Permission denied)" in refused(vit=file)


# ---- Discovery


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """An empty checkpoints/ in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_strange_neighbours_do_not_end_discovery(downloads, checkpoints, capsys):
    os.mkfifo(downloads / "a-pipe")
    os.mkfifo(downloads / "a.json")
    (downloads / "b-zero").symlink_to("/dev/zero")
    (downloads / "c-nowhere").symlink_to("nowhere")
    (downloads / "d-itself").symlink_to("d-itself")
    (downloads / "e-loop").symlink_to(".")
    (downloads / "f-above").symlink_to("/")
    (downloads / "g-bad").mkdir()
    (downloads / "g-bad" / "config.json").write_text("[")
    torch.save({"llama_model.model.layers.0.self_attn.1.down.weight": torch.ones(1)},
               downloads / "h-half.pth")
    torch.save({"model": None, 1: torch.ones(2)}, downloads / "i-none.pth")
    (downloads / "z.pth").symlink_to(checkpoints / "eva_vit_g.pth")
    (downloads / "z-again.pth").symlink_to("z.pth")
    convert_weights.main([])
    said = capsys.readouterr().out
    assert said.count(": EVA-ViT-g, 0.01 GB") == 1
    for name in ("g-bad", "h-half.pth", "i-none.pth"):
        assert f"not usable: checkpoints/{name}" in said
    assert said.count("not usable") == 3


def test_junk_is_summed_up(downloads, capsys):
    for i in range(200):
        (downloads / f"junk-{i}").write_bytes(b"junk")
    convert_weights.main([])
    said = capsys.readouterr().out
    assert said.count("not usable: ") == 11 and "not usable: 190 more" in said


def test_control_characters_in_names_do_not_reach_the_terminal(downloads, convert, capsys):
    (downloads / "a\x1b[2J\nb").write_bytes(b"junk")
    convert_weights.main([])
    with pytest.raises(SystemExit):
        convert(downloads / "out", vit=downloads / "a\x1b[2J\nb")
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and said.count("a\\x1b[2J b") >= 2


def test_yes_keeps_the_other_flags(downloads, checkpoints, capsys):
    for i, name in enumerate(("blip2-hf", "vicuna")):
        (downloads / f"{i} and more").symlink_to(checkpoints / name)
    convert_weights.main(["--prompt", "llama2_chat", "--debug"])
    said = capsys.readouterr().out
    assert "--vit 'checkpoints/0 and more'" in said and "--prompt llama2_chat --debug" in said
    convert_weights.main(["--yes", "--prompt", "llama2_chat"])
    assert load_folder("weights/artgpt4").config.prompt == "llama2_chat"


def test_two_candidates_for_one_part_are_named_and_yes_takes_neither(
        downloads, checkpoints, capsys):
    for name in ("blip2-hf", "vicuna", "ArtGPT-4.pth"):
        (downloads / name).symlink_to(checkpoints / name)
    (downloads / "other.pth").write_bytes((checkpoints / "ArtGPT-4.pth").read_bytes())
    convert_weights.main([])
    assert "also possible: --adapter checkpoints/other.pth" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        convert_weights.main(["--yes"])
    assert "two candidates for one part" in capsys.readouterr().err
    assert not Path("weights").exists()


def test_paths_in_printed_commands_are_quoted(convert, tmp_path, capsys):
    convert(tmp_path / "my weights")
    assert f"--weights '{tmp_path}/my weights' image.jpg" in capsys.readouterr().out


# ---- What is left behind


def test_parents_made_for_a_failed_out_go(convert, tmp_path, checkpoints, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("conversion.writing.write_safetensors", fail)
    with pytest.raises(SystemExit):
        convert(tmp_path / "mine" / "a" / "b" / "weights")
    assert "No space left on device; nothing was kept" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.fixture
def started(convert, tmp_path):
    """started(): the number of another process, halfway through a conversion to deep/weights. What
    it says on stderr is in the file "said"."""
    def start():
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            write = writing.write_safetensors

            def slowly(*arguments):
                write(*arguments)
                os.write(writer, b"half")
                time.sleep(60)
            writing.write_safetensors = slowly
            sys.stderr = open(tmp_path / "said", "w", buffering=1)
            try:
                convert(tmp_path / "deep/weights")
            except SystemExit as end:
                os._exit(end.code)
            finally:
                os._exit(1)
        assert os.read(reader, 4) == b"half"
        return process
    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up(started, tmp_path, number):
    process = started()
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + number
    assert f"ended by {number.name}; nothing was kept" in (tmp_path / "said").read_text()
    assert not (tmp_path / "deep").exists()


def test_what_kill_9_left_is_named_and_removed_at_the_next_start(
        started, convert, tmp_path, capsys):
    process = started()
    left, = (tmp_path / "deep").iterdir()
    (tmp_path / "deep" / ".other.part").mkdir()               # somebody else's
    convert(tmp_path / "deep" / "first")
    assert f"{left}: 0.01 GB so far, is being written by another" in capsys.readouterr().err
    assert left.exists()
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    convert(tmp_path / "deep" / "second")
    said = capsys.readouterr().err
    assert f"removed {left}: 0.01 GB, left by a conversion that was killed" in said
    names = sorted(path.name for path in (tmp_path / "deep").iterdir())
    assert names == [".other.part", "first", "second"]


def test_folders_of_one_process_number_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)              # in each container it is 1
    out = tmp_path / "weights"
    with folder_beside(out, 0) as first:
        (first / "file").write_text("mine")
        with pytest.raises(KeyboardInterrupt):
            with folder_beside(out, 0) as second:
                assert second != first
                remove_leftovers(tmp_path)
                raise KeyboardInterrupt
        assert (first / "file").read_text() == "mine" and not second.exists()
    assert sorted(path.name for path in out.iterdir()) == ["file"]


def test_a_lock_that_nobody_holds_is_removed(tmp_path, capsys):
    left = tmp_path / ".weights.0.1.part"
    left.mkdir()
    (left / LOCK).touch()
    with open(left / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert left.exists()
    remove_leftovers(tmp_path)
    assert not left.exists() and "removed" in capsys.readouterr().err

"""bench.py as a command: which table a flag prints; no time is tested."""
import pytest

import bench
from artgpt4 import Config
from benchmarks import costs, speed
from tests.conftest import run


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_int8_error_prints_what_int8_changes(capsys):
    run(bench.main, bench.command_line(), "--int8-error")
    _, _, exact, int8 = map(cells, capsys.readouterr().out.splitlines())
    assert exact[:2] == ["float32", "0.00%"] and int8[0] == "int8"
    assert 0 < float(int8[1].rstrip("%")) < 1
    assert float(int8[2]) == pytest.approx(float(exact[2]), rel=0.02)


def test_memory_prints_a_line_for_each_way(capsys, monkeypatch):
    monkeypatch.setattr(costs, "Config", lambda: Config(
        llama_layers=4, vit_layers=1, qformer_layers=1))
    run(bench.main, bench.command_line(), "--memory")
    _, _, *rows = map(cells, capsys.readouterr().out.splitlines())
    assert len(rows) == 5
    assert all(float(row[-1]) == pytest.approx(sum(map(float, row[1:-1])), abs=0.3) for row in rows)
    assert float(rows[3][1]) < 0.7 * float(rows[0][1])        # frozen weights, in int8


@pytest.mark.parametrize("flags", [[], ["--int8"]], ids=" ".join)
def test_a_weights_folder_is_timed_part_by_part(flags, capsys, monkeypatch):
    monkeypatch.setattr(speed, "TURNS", 1)
    monkeypatch.setattr(speed, "machine_limits", lambda device: {
        "float32 operations": 1e11, "int8 operations": 2e11, "bytes read": 1e10})
    run(bench.main, bench.command_line(), *flags)
    name, _, _, _, *rows, _, memory = capsys.readouterr().out.splitlines()
    assert name.startswith("tiny, float32") and ("int8" in name) == bool(flags)
    assert [cells(row)[0] for row in rows] == [
        "encode", "prefill, 128 tokens", "decode, 32 tokens"]
    assert ("int8" in rows[1]) == bool(flags) and "float32" in rows[0]
    assert memory.startswith("peak memory")


@pytest.mark.parametrize("flags, code", [
    (["--weights", "nowhere"], 1), (["--shape", "2b"], 2), (["--device", "quantum"], 2),
    (["--memory", "--shape", "1b"], 2)])
def test_wrong_flags_are_one_line(flags, code, capsys):
    assert run(bench.main, bench.command_line(), *flags) == code
    assert flags[1] in capsys.readouterr().err.splitlines()[-1]

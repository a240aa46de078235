"""bench.py as a command: which table a flag prints; no time is tested."""
import re

import pytest

import bench


def run_bench(*flags):
    bench.run_command(bench.main, bench.command_line(), [str(flag) for flag in flags])


def test_int8_error_prints_the_error_of_a_layer_and_of_the_vit(capsys):
    run_bench("--int8-error")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| what | how | error or value |" and len(lines) == 9
    assert re.search(r"\| two digits \| 0\.0\d% \|", lines[2])
    assert re.search(r"image embeddings of tiny \| ViT in int8 \| 0\.\d\d% \|", lines[5])
    perplexities = [float(line.split("|")[3]) for line in lines[6:]]
    assert perplexities[1:] == pytest.approx([perplexities[0]] * 2, rel=0.02)


def test_rounds_prints_a_line_for_each_round(capsys):
    run_bench("--rounds", 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["round", "---", "1", "2"]


def test_beams_prints_a_line_for_one_and_for_all(capsys):
    run_bench("--beams", 3, "--prompt-tokens", 8, "--new-tokens", 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["beams", "---", "1", "3"]
    assert lines[2].split("|")[3].strip() == "1.00 x"


def test_a_folder_without_weights_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_bench("--weights", tmp_path)
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(error) == 1 and str(tmp_path) in error[0]

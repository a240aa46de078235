"""Reports: models of several seeds, and texts that try to run something."""
import json

from PIL import Image

from tests.common.html_elements import Elements
from tests.evaluation.bad_server import gives

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_a_name_given_several_times_is_one_model_with_a_spread(quick, server, tmp_path):
    server.script += [gives(score) for score in (0, 5) * 6]
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    out = quick(*server.flags, "--weights", f"One={tmp_path / 'a.safetensors'}",
                f"One={tmp_path / 'b.safetensors'}", models=("Art",))
    table = (out / "report.md").read_text()
    assert table.count("| One |") == table.count("| Art |") == 4 and "±" in table


def test_a_report_without_a_judge_has_the_answers_and_says_how_to_get_scores(quick):
    out = quick()
    assert "Not judged; --judge says by whom." in (out / "report.md").read_text()
    html = (out / "report.html").read_text()
    assert "Art says of IDC 1: " in html and "Mini says of MDIUC 1: " in html
    assert "Unjudged" not in html and "svg" not in Elements(html).tags


def test_nothing_that_a_model_a_judge_or_a_name_says_runs_in_the_report(
        quick, server, benchmark_folder):
    name = "3.<img src=x onerror=alert(1)>"
    Image.new("RGB", (9, 9)).save(benchmark_folder / "IDC" / name, format="PNG")
    (benchmark_folder / "questions.json").write_text(json.dumps({"ISAC": SCRIPT}))
    quick.answer = lambda model, item: [f"{SCRIPT}\ud800"] * len(item.questions)
    server.script += [gives(1, SCRIPT)] * 7
    out = quick("--judge", server.url, "--judge-model", SCRIPT, models=("<script>",))
    quick("--judge", "manual", models=("<script>",))
    for name in ("report.html", "scoring.html"):
        text = (out / name).read_text()
        page = Elements(text)
        assert "script" not in page.tags and page.tags.count("img") == 7
        assert not page.handlers()
        assert all(address.startswith("data:") for address in page.addresses())
        assert SCRIPT.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<script" not in (out / "report.md").read_text()


BAD_PAGE = """<!doctype html><title>t</title><script>alert(1)</script><meta http-equiv=refresh
content="0;url=http://127.0.0.1:9/"><h1 onclick=alert(1)>A cat</h1><img src=http://127.0.0.1:9/x>"""


def test_web_pages_stand_side_by_side_in_frames_that_run_nothing(quick, benchmark_folder, server):
    (benchmark_folder / "PAGES").mkdir()
    Image.new("RGB", (9, 9)).save(benchmark_folder / "PAGES" / "1.png")

    def answer(model, item):
        text = "words"
        if item.benchmark == "PAGES":
            text = f"Here it is, by {model}:\n```html\n{BAD_PAGE}\n```\nDo you like it?"
        return [text] * len(item.questions)

    quick.answer = answer
    server.script += [gives(4)] * 14
    out = quick(*server.flags)
    html = (out / "report.html").read_text()
    page = Elements(html)
    assert page.tags.count("iframe") == 2 and "script" not in page.tags and not page.handlers()
    assert html.count('<iframe sandbox="" srcdoc="&lt;!doctype html&gt;') == 2
    report = (out / "report.md").read_text()
    assert "Figure 5: web page writing capability (PAGES)" in report
    assert "GPT-4 (published) |  |" not in report.split("Figure 5")[1].split("##")[0]
    overall = report.split("Overall")[1].split("##")[0]
    assert "PAGES" not in overall

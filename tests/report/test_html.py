import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest

from tuneworthy.errors import StorageError
from tuneworthy.report.html import EMBEDDED_CHARACTERS, json_for_html, render, rows_payload
from tuneworthy.report.reading import read_run
from tuneworthy.store import RunFolder, read_json, write_json

from .sample_run import HOSTILE, UGLY, write_sample


class Page(HTMLParser):
    """What a browser would make of the report: elements, attributes, script texts, words."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts.append(data)
        elif self.lasttag != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def data(self):
        return json.loads(next(s for s in self.scripts if s.strip().startswith("{")))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("runs") / "home-commands-20261120-100200-abcd1234")


@pytest.fixture(scope="module")
def page(sample):
    return render(sample)


def test_nothing_is_loaded(page):
    parsed = Page(page)
    loading = {"src", "srcset", "data", "poster", "action", "formaction", "background"}
    for tag, name, value in parsed.attributes:
        assert name not in loading, (tag, name, value)
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, value)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.S))
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles


def test_hostile_row_text_is_inert(page):
    parsed = Page(page)
    assert parsed.tags.count("script") == 2
    assert not [a for a in parsed.attributes if a[1].startswith("on")]
    texts = [row["prompt"][0][1] for row in parsed.data["rows"]]
    assert texts[0] == HOSTILE
    assert "<img src=x" not in page
    # The candidate that was chosen carries the same text through the template.
    assert "&lt;img src=x onerror=" in page
    script = next(s for s in parsed.scripts if "use strict" in s)
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way_in not in script


def test_the_policy_names_the_script_that_is_there(page):
    import base64
    import hashlib

    script = next(s for s in Page(page).scripts if "use strict" in s)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.replace("&#39;", "'").replace("&#43;", "+")


def test_every_row_and_answer_is_there(sample, page):
    data = Page(page).data
    assert len(data["rows"]) == 200
    assert set(data["arms"]) == {"zero-shot", "system-prompt", "few-shot", "rag", "lora", "full"}
    assert all(len(row["answers"]) == 6 and None not in row["answers"] for row in data["rows"])
    failed = data["rows"][11]["answers"][0]
    assert failed[1] is None
    assert failed[3] == "out of memory at 12,004 tokens"
    assert any(not a[2] and a[3] is None for row in data["rows"] for a in row["answers"])
    assert data["rows"][1]["prompt"][0][1] == UGLY[1]
    assert data["rows"][2]["prompt"][0][1] == UGLY[2]
    assert "characters left out here" in data["rows"][4]["prompt"][0][1]


def test_verdict_numbers_and_accounting_are_in_words(sample, page):
    text = Page(page).text
    decision = read_json(sample.decision)
    for words in (
        "Fine-tune: use lora.",
        "Confidence: high.",
        *decision["because"],
        *decision["also"],
        f"What would change this: {decision['would_change']}",
        "completions are not labels",
        "1,315 input rows: 1,300 kept (1,000 train, 100 dev, 200 test), 15 dropped, 0 truncated",
        "Opened again after seeing results.",
        "opened 2 times in earlier runs",
        "tuneworthy decide home-commands/tuneworthy.yaml --budget 30m",
        "lora.learning_rate",
        "3,021 requests",
    ):
        assert words in text, words
    for arm in decision["arms"]:
        assert f"{arm['score']:.3f} {arm['interval'][0]:.3f} to {arm['interval'][1]:.3f}" in text
    assert page.count('role="img"') == 2 * (3 + 2 + 1), (
        "wide and narrow: three charts, two curves by steps, one by rows"
    )
    assert page.count("<desc>") == page.count('role="img"')


def test_an_earlier_opening_without_results_is_no_alarm(tmp_path):
    run = write_sample(tmp_path / "run", rows=30, finished=False)
    seal = read_json(run.seal)
    write_json(run.seal, seal | {"earlier": [o | {"results": False} for o in seal["earlier"]]})
    text = Page(render(run)).text
    assert "Earlier runs opened these rows 2 times but ended before" in text
    assert "Opened again" not in text


def test_links_of_the_contents_lead_somewhere(page):
    anchors = [v for t, n, v in Page(page).attributes if n == "href" and v.startswith("#")]
    ids = {v for _, n, v in Page(page).attributes if n == "id"}
    assert len(anchors) > 10
    assert {a[1:] for a in anchors} <= ids


def test_it_is_quick_and_small(sample, page):
    assert len(page.encode()) < 1_500_000
    started = time.process_time()
    render(sample)
    assert time.process_time() - started < 6, "about one second alone on a core"


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": ("zero-shot", "few-shot")},
        {"arms": ("zero-shot",)},
        {"intervals": False},
        {"verdict": "inconclusive"},
        {"verdict": "collect-data", "reopened": False},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_other_runs(tmp_path, changes):
    parsed = Page(render(write_sample(tmp_path / "run", rows=30, **changes)))
    assert len(parsed.data["rows"]) == 30
    if "intervals" in changes:
        assert "not measurable" in parsed.text
        assert "nan" not in parsed.text.lower()
    if changes.get("arms") == ("zero-shot",):
        assert "Wins and losses" not in parsed.text
        assert "No trained arm was measured" in parsed.text
    if changes.get("verdict") == "inconclusive":
        assert "This test cannot tell yet whether fine-tuning pays." in parsed.text
    if changes.get("reopened") is False:
        assert "No earlier run opened these rows." in parsed.text


def test_every_number_may_be_missing(tmp_path):
    run = write_sample(tmp_path / "run", rows=30)
    decision = read_json(run.decision)

    def emptied(value, key=""):
        if isinstance(value, dict):
            return {k: emptied(v, k) for k, v in value.items()}
        if isinstance(value, list) and key in ("arms",):
            return [emptied(v) for v in value]
        keep = ("n", "failures", "unparsed", "margin", "requests_per_month", "trained", "version")
        return value if isinstance(value, str | list | bool) or key in keep else None

    write_json(run.decision, emptied(decision))
    text = Page(render(run)).text
    assert "not measurable" in text
    assert "None" not in text


def test_what_stands_behind_the_verdict_is_shown(tmp_path):
    text = Page(render(write_sample(tmp_path / "run", rows=30))).text
    for words in (
        "12 % of the rows ask for facts.",
        "Forecast (estimate)",
        "unknown",
        "effort, in 1 sentence with 2 numbers.",
        "training for facts mind it 61 % ask.",
        "a one-off task not known",
        "3 trainings that differ in their seed alone",
        "right on 58 % of 108 general questions",
        "order of the same examples moves the score",
        "three seeds would have taken 48 min 20 s",
    ):
        assert words in text, words


def test_what_everything_would_have_taken_may_be_unknown(tmp_path):
    run = write_sample(tmp_path / "run", rows=30)
    decision = read_json(run.decision)
    decision["spent"]["exhaustive_seconds_estimate"] = None
    write_json(run.decision, decision)
    assert "how long every arm to its end would take is not known." in Page(render(run)).text


def test_an_interrupted_run_says_so(tmp_path):
    parsed = Page(render(write_sample(tmp_path / "run", rows=30, finished=False)))
    assert "This run is not finished." in parsed.text
    assert "zero-shot 30 of 30" in parsed.text
    assert "full 10 of 30" in parsed.text
    assert "Fine-tune: use" not in parsed.text
    assert len(parsed.data["rows"]) == 30


def test_a_run_killed_at_the_start_still_renders(tmp_path):
    full = write_sample(tmp_path / "full", rows=30)
    (tmp_path / "run").mkdir()
    shutil.copy(full.config, tmp_path / "run" / "config.json")
    text = Page(render(RunFolder(tmp_path / "run"))).text
    assert "No arm has answered a row yet." in text
    assert "The test rows are not sealed yet." in text


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(StorageError):
        render(RunFolder(tmp_path))


def test_many_long_rows_are_cut_to_what_a_browser_bears(tmp_path):
    records = read_run(write_sample(tmp_path / "run", rows=40, ugly=False))
    for row in records.test_rows:
        row["messages"][0]["content"] = "word " * 200_000
    for arm in records.arms:
        for line in arm.predictions.values():
            line["text"] = "word " * 20_000
    payload = json_for_html(rows_payload(records))
    assert len(payload) < EMBEDDED_CHARACTERS * 1.2
    assert len(json.loads(payload)["rows"]) == 40


def test_json_cannot_leave_its_element():
    text = json_for_html(["</script>", "<!--", "\u2028", "&"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script>", "<!--", "\u2028", "&"]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
def test_a_browser_shows_the_rows(tmp_path, page):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    command = (
        f"{CHROMIUM} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--user-data-dir={tmp_path / 'profile'} --dump-dom {file.as_uri()}"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=90, check=False)
    shown = Page(done.stdout)
    assert "Rows 1 to 20 of 200" in shown.text
    assert shown.tags.count("details") >= 20
    assert "img" not in shown.tags
    assert "<title>home-commands: Fine-tune: use lora. — Tuneworthy</title>" in done.stdout


def test_a_curve_by_rows_shows_parts_the_whole_and_what_more_would_give(sample, page):
    [description] = re.findall(r"Score of lora by training rows.*?</desc>", page, re.S)[:1]
    assert "125 rows 0.626 (on dev rows)" in description
    assert "250 rows 0.758 (on dev rows)" in description
    assert re.search(r"1,000 rows 0\.\d{3} \(on sealed rows\)", description)
    assert "4,000 rows 0.967 (forecast)" in description
    untrained = read_json(sample.decision)["best_untrained"]
    assert f"{untrained}, the best arm without training, has 0." in description


def test_an_arm_that_was_stopped_has_its_forecast_for_all_rows(tmp_path):
    run = write_sample(tmp_path / "run", verdict="inconclusive")
    decision = read_json(run.decision)
    decision["arms"] = [arm for arm in decision["arms"] if arm["arm"] != "lora"]
    decision["forecast"] = decision["forecast"][:2]
    write_json(run.decision, decision)
    [description] = re.findall(r"Score of lora by training rows.*?</desc>", render(run), re.S)[:1]
    assert "1,000 rows 0.790 (forecast)" in description and "sealed" not in description


def test_without_parts_or_forecasts_there_is_no_curve_by_rows(tmp_path):
    run = write_sample(tmp_path / "run")
    run.curve("lora").unlink()
    assert "by training rows" not in render(run)

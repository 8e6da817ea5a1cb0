"""Every page as it leaves the server: links that lead somewhere, names for everything, inert rows."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from tests.fakes import projects
from tests.report.sample_run import HOSTILE, write_sample
from tests.server.ui.conftest import Visit, visits
from tests.server.ui.reading import Page
from tuneworthy import store
from tuneworthy.server import promotion
from tuneworthy.store import RunFolder

Visiting = Callable[..., Visit]
RUN = "home-commands-20261120-100200-abcd1234"
CONTROLS = ("input", "select", "textarea")


@pytest.fixture
def mine(decided: Path, tmp_path: Path) -> Path:
    """A decided project that may be changed."""
    folder = tmp_path / "mine"
    shutil.copytree(decided, folder)
    return folder


@pytest.fixture(scope="module")
def ugly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one finished run has the ugliest rows, and one that is not finished."""
    folder = tmp_path_factory.mktemp("ugly") / "home"
    projects.write(folder, projects.rows(5), task="home-commands", instruction=HOSTILE)
    write_sample(
        folder / "runs" / "home-commands-20261119-100200-00000000", finished=False, rows=40
    )
    run = write_sample(folder / "runs" / RUN)
    # The samples hold half characters, which are written as \\u escapes alone.
    path = run.predictions("zero-shot")
    first, *others = path.read_text().splitlines()
    lines = [json.dumps({**json.loads(first), "text": ""}), *others]
    path.write_text("".join(f"{line}\n" for line in lines))
    return folder


def crawl(visit: Visit, most: int = 200) -> dict[str, Page]:
    """Every page that links lead to from the first one, without the query; each must be there."""
    waiting: list[str] = ["/"]
    seen: dict[str, Page] = {}
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        page = visit.get(path)
        seen[path] = page
        assert len(seen) < most
        for link in page.find("a"):
            address = urlsplit(urljoin(path, link["href"] or ""))
            assert not address.netloc, "a link leads elsewhere"
            if address.path not in seen:
                waiting.append(address.path)
    return seen


@pytest.fixture(scope="module")
def seen(ugly: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Page]]:
    with visits(tmp_path_factory.mktemp("crawled")) as visit:
        yield crawl(visit(ugly))


def test_every_link_leads_somewhere(seen: dict[str, Page]) -> None:
    ends = Counter(path.rsplit("/", 1)[1] for path in seen)
    assert len(seen) >= 13
    assert ends["rows"] == ends["data"] == ends["report.html"] == 2
    for path, page in seen.items():
        for link in page.find("a"):
            href = link["href"] or ""
            if href.startswith("#"):
                targets = [a for _, a in page.elements if a.get("id") == href[1:]]
                assert len(targets) == 1, (path, href)


def test_everything_has_a_name_and_a_place(seen: dict[str, Page]) -> None:
    titles = set()
    for path, page in seen.items():
        if path.endswith("report.html"):
            continue
        assert page.find("html", lang="en"), path
        assert len(page.find("main", id="main")) == 1, path
        assert len(page.find("h1")) == 1, path
        assert page.find("a", href="#main"), path
        titles.add(re.search(r"<title>(.*?)</title>", page.html)[1])  # type: ignore[index]
        ids = Counter(a["id"] for _, a in page.elements if "id" in a)
        assert not [i for i, n in ids.items() if n > 1], path
        named = labelled(page.html)
        for tag, attributes in page.elements:
            if tag in CONTROLS and attributes.get("type") != "hidden":
                name = (tag, attributes.get("name"))
                assert name in named or "aria-label" in attributes, (path, name)
            for reference in ("aria-labelledby", "aria-describedby"):
                assert attributes.get(reference) is None or attributes[reference] in ids, path
            if tag == "th":
                assert "scope" in attributes, path
            if tag == "svg":
                assert attributes["role"] == "img", path
    assert len(titles) >= 8, "pages can be told apart in a list of tabs"


def labelled(html: str) -> set[tuple[str, str | None]]:
    """(tag, name) of controls that stand in a label with words in it."""
    found = set()
    for label in re.findall(r"<label[^>]*>(.*?)</label>", html, re.S):
        words = re.sub(r"<(select|textarea).*?</\1>|<[^>]+>", "", label, flags=re.S).strip()
        for tag, attributes in re.findall(r"<(input|select|textarea)\b([^>]*)>", label):
            name = re.search(r'name="([^"]*)"', attributes)
            if words and name:
                found.add((tag, name[1]))
    return found


def test_what_strangers_wrote_is_text_on_every_page(seen: dict[str, Page]) -> None:
    shown = 0
    for path, page in seen.items():
        if path.endswith("report.html"):
            continue
        assert not page.find("img"), path
        assert not [n for _, a in page.elements for n in a if n.startswith("on")], path
        assert len(page.find("script")) == 1, path
        shown += "onerror=" in page.html
    assert shown >= 4, "the project's instruction and the first row stand on several pages"


@pytest.mark.parametrize(
    "text", [HOSTILE, '"><script>alert(1)</script>', "'); alert(1); ('", "{{ 7*7 }}", "\x00\ud83d"]
)
def test_what_is_asked_for_comes_back_as_text(ugly: Path, visiting: Visiting, text: str) -> None:
    visit = visiting(ugly)
    address = f"/p/home-commands/runs/{RUN}"
    sent = text.encode("utf-8", "replace").decode()
    for path, name in (
        (f"{address}/rows", "q"),
        (f"{address}/data", "q"),
        ("/playground", "prompt"),
    ):
        page = visit.get(path, **{name: sent})
        assert len(page.find("script")) == 1
        assert not page.find("img")
        assert "49" not in re.findall(r"\b49\b", page.text) or "7*7" in page.html
    for name in ("a", "b", "show", "page"):
        page = visit.get(f"{address}/rows", **{name: sent})
        assert len(page.find("script")) == 1


def test_hard_text_is_shown_whole_and_in_its_own_direction(ugly: Path, visiting: Visiting) -> None:
    page = visiting(ugly).get(f"/p/home-commands/runs/{RUN}/rows")
    for words in (
        "أطفئ الأنوار",
        "👩‍👩‍👧‍👦",
        "把客厅的灯",
        "half an emoji",
        "characters left out here",
        "(empty)",
    ):
        assert words in page.html, words
    blocks = page.find("pre")
    assert len(blocks) > 100
    assert all(b["dir"] == "auto" and b["tabindex"] == "0" and b["aria-label"] for b in blocks)


def test_a_run_s_pages_say_what_the_report_says(ugly: Path, visiting: Visiting) -> None:
    visit = visiting(ugly)
    decision = store.read_json(RunFolder(ugly / "runs" / RUN).decision)
    page = visit.get(f"/p/home-commands/runs/{RUN}")
    for words in (
        "Fine-tune: use lora.".replace("-", "‑"),
        "Confidence: high.",
        *decision["because"],
        *decision["also"],
        decision["would_change"],
    ):
        assert words in page.text
    assert len(page.find("svg")) >= 6
    assert not page.find("style")
    data = visit.get(f"/p/home-commands/runs/{RUN}/data")
    assert "1,315 input rows: 1,300 kept" in data.text
    assert "Opened again after seeing results." in data.text


def test_an_unfinished_run_says_so(ugly: Path, visiting: Visiting) -> None:
    page = visiting(ugly).get("/p/home-commands/runs/home-commands-20261119-100200-00000000")
    assert "This run is not finished." in page.text


def test_filters_and_search_are_in_the_address(ugly: Path, visiting: Visiting) -> None:
    visit, address = visiting(ugly), f"/p/home-commands/runs/{RUN}/rows"
    page = visit.get(address, a="lora", b="few-shot", show="lost", q="turn")
    chosen = [a.get("value") for tag, a in page.elements if tag == "option" and "selected" in a]
    assert "lost" in chosen
    assert page.find("input", name="q", value="turn")
    number = len(page.find("details", **{"class": "row"}))
    assert 0 < number <= 20
    told = re.search(r"few-shot better \((\d+)\)", page.text)
    assert told
    assert f"of {told[1]} row" in page.text
    second = visit.get(address, page="2")
    assert "21 to 40 of 200 rows" in second.text


def test_arms_change_hands_by_forms(mine: Path, visiting: Visiting) -> None:
    visit = visiting(mine)
    page = visit.get("/p/commands")
    before = promotion.answering(mine)
    assert before
    other = next(arm for arm in ("zero-shot", "few-shot") if arm != before.arm)
    page = visit.post("/p/commands/promote", page, arm=other)
    assert page.path == "/p/commands"
    assert f"go to {other} of run" in page.text
    assert promotion.read(mine).promoted.arm == other  # type: ignore[union-attr]
    page = visit.post("/p/commands/canary", page, arm=before.arm, percent="12.5")
    assert f"{before.arm} answers 12 % of the requests" in page.text
    assert promotion.read(mine).canary.share == pytest.approx(0.125)  # type: ignore[union-attr]
    page = visit.post("/p/commands/shadow", page, arm="lora")
    assert promotion.read(mine).shadow.arm == "lora"  # type: ignore[union-attr]
    page = visit.post("/p/commands/canary", page, arm="")
    assert promotion.read(mine).canary is None
    page = visit.post("/p/commands/rollback", page)
    assert promotion.read(mine).promoted.arm == before.arm  # type: ignore[union-attr]
    assert [line["by"] for line in promotion.history(mine)] == ["page"] * 5
    assert "rolled back" in page.text


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("promote", {"arm": "full"}, "'full' was not measured"),
        ("canary", {"arm": "lora", "percent": "150"}, "a canary's share is 1.5"),
        ("canary", {"arm": "lora", "percent": "much"}, "'much' is no share of requests"),
        ("rollback", {}, "nothing to roll back to"),
        ("shadow", {"arm": "../lora"}, "'../lora' was not measured"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(
    mine: Path, visiting: Visiting, path: str, fields: dict[str, str], words: str
) -> None:
    visit = visiting(mine)
    page = visit.post(f"/p/commands/{path}", visit.get("/p/commands"), status=400, **fields)
    assert len(page.find("p", role="alert")) == 1
    assert words in page.text
    assert "Hint:" in page.text
    assert promotion.read(mine) == promotion.Promotion()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budget": "soon"}, "a duration is a number"),
        ({"which": "some"}, "no arms"),
        ({"which": "some", "arms": "lorra"}, "did you mean 'lora'?"),
    ],
)
def test_a_run_that_cannot_be_is_not_started(
    mine: Path, visiting: Visiting, fields: dict[str, str], words: str
) -> None:
    visit = visiting(mine)
    given = {"budget": "none", "which": "auto", **fields}
    page = visit.post("/p/commands/start", visit.get("/p/commands/start"), status=400, **given)
    assert words in page.text
    # What was filled in stands there still.
    assert page.find("input", name="budget", value=given["budget"])
    assert len(store.runs(mine)) == 1


def test_the_playground_streams_one_answer(mine: Path, visiting: Visiting) -> None:
    visit = visiting(mine)
    token = visit.get("/playground").token_of_the_form
    run = store.runs(mine)[-1]
    row = next(r for r in store.read_jsonl(run.rows) if r["split"] == "test")
    said = {line["id"]: line["text"] for line in store.read_jsonl(run.predictions("lora"))}
    answer = visit.client.post(
        "/playground/answer",
        data={"model": "commands/lora", "prompt": row["messages"][-1]["content"]},
        headers={"x-token": token},
    )
    lines = [json.loads(line) for line in answer.text.splitlines()]
    # What is shown is what was measured.
    assert "".join(line.get("text", "") for line in lines) == said[row["id"]]
    assert lines[-1]["done"]["arm"] == "lora"
    refused = visit.client.post(
        "/playground/answer", data={"model": "commands/lora", "prompt": "x"}
    )
    assert refused.status_code == 403


def test_the_playground_says_what_is_not_there(mine: Path, visiting: Visiting) -> None:
    visit = visiting(mine)
    headers = {"x-token": visit.get("/playground").token_of_the_form}
    answer = visit.client.post(
        "/playground/answer", data={"model": "<b>", "prompt": "x"}, headers=headers
    )
    assert answer.status_code == 404
    page = Page(answer)
    assert "Nothing here is called '<b>'." in page.text
    assert not page.find("b")


def test_files_of_the_page_and_no_others(mine: Path, visiting: Visiting) -> None:
    visit = visiting(mine)
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        assert visit.client.get(f"/assets/{name}").headers["content-type"].startswith(kind)
    for name in ("..%2fdoor.py", "site.py", "%2e%2e/site.py"):
        assert visit.client.get(f"/assets/{name}").status_code == 404

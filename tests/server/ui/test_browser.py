"""The page in a real browser: a whole run clicked through, keys alone, light and dark, a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes import projects
from tests.report.sample_run import HOSTILE, write_sample
from tests.server.jobs.serving import rows as chat_rows
from tests.server.ui.browser import PHONE, Looker, Server, chromium
from tuneworthy import store
from tuneworthy.server import promotion
from tuneworthy.server.keys import Keys

RUN = "/p/home-commands/runs/home-commands-20261120-100200-abcd1234"
PAGES = {
    "projects": "/",
    "project": "/p/commands",
    "start": "/p/commands/start",
    "ugly-verdict": RUN,
    "ugly-rows": f"{RUN}/rows",
    "ugly-data": f"{RUN}/data",
    "jobs": "/jobs",
}
CONTRAST = 4.5
"""WCAG 2.2, AA, for text."""

Look = Callable[..., Looker]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two projects: one not measured yet, one with the ugliest rows there are."""
    folder = tmp_path_factory.mktemp("served")
    projects.write(folder / "commands", projects.rows(160), instruction="Turn it into JSON.")
    projects.write(folder / "home", projects.rows(5), task="home-commands", instruction=HOSTILE)
    write_sample(folder / "home" / "runs" / RUN.rsplit("/", 1)[1])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(
    browser: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    made = Server(folder, tmp_path_factory.mktemp("state"))
    yield made
    assert made.stop() == 130


@pytest.fixture
def look(browser: Any, server: Server) -> Iterator[Look]:
    """Opens windows; whatever went wrong in one of them fails the test."""
    opened: list[Looker] = []

    def looking(**how: Any) -> Looker:
        opened.append(Looker(browser, server, **how))
        return opened[-1]

    yield looking
    for window in opened:
        window.close()
    for window in opened:
        window.check()


def test_a_whole_run(look: Look, folder: Path) -> None:
    window = look()
    page = window.go("/")
    window.picture("projects-before")
    page.get_by_role("link", name="commands", exact=True).click()
    page.get_by_role("link", name="Start a run").click()
    page.get_by_label("Budget").fill("none")
    for arm in ("zero-shot", "few-shot", "lora"):
        page.get_by_role("checkbox", name=arm, exact=True).check()
    assert page.get_by_label("These alone:").is_checked()
    window.picture("start")
    page.get_by_role("button", name="Start").click()

    page.wait_for_url("**/watch")
    assert "as it happens" in page.get_by_role("heading", level=1).inner_text()
    page.get_by_role("row", name=re.compile("^few-shot")).wait_for(timeout=60_000)
    window.picture("watch")
    # Nobody has loaded the page again: it goes on by itself.
    page.get_by_role("link", name="See the verdict").wait_for(timeout=60_000)
    assert page.get_by_role("status").inner_text() == "The run is finished."
    assert page.get_by_role("img", name=re.compile("Loss while lora")).first.is_visible()
    window.picture("watched")
    page.get_by_role("link", name="See the verdict").click()

    run = store.runs(folder / "commands")[-1]
    decision = store.read_json(run.decision)
    assert {arm["arm"] for arm in decision["arms"]} == {"zero-shot", "few-shot", "lora"}
    for reason in decision["because"]:
        assert page.get_by_text(reason).is_visible()
    assert page.get_by_role("img", name="Score of every arm").first.is_visible()
    window.picture("verdict")

    _rows(window, run)
    _promote(window, folder / "commands", decision["arm"])
    _playground(window, run)


def _rows(window: Looker, run: store.RunFolder) -> None:
    page = window.page
    page.get_by_role("navigation", name="This run").get_by_role("link", name="Rows").click()
    told = page.get_by_role("status").first
    assert "1 to 20 of 60 rows" in told.inner_text()
    page.get_by_role("combobox", name="A", exact=True).select_option("lora")
    page.get_by_role("combobox", name="B", exact=True).select_option("zero-shot")
    page.get_by_role("combobox", name="Show", exact=True).select_option("won")
    page.get_by_role("button", name="Show", exact=True).click()
    scores = {
        arm: {line["id"]: line["score"] for line in store.read_jsonl(run.predictions(arm))}
        for arm in ("lora", "zero-shot")
    }
    won = [i for i, score in scores["lora"].items() if score > scores["zero-shot"][i]]
    assert f"of {len(won)} row" in told.inner_text()
    assert page.locator("details.row").count() == min(20, len(won))
    assert page.locator("details.row .pairwise").all_inner_texts() == ["lora better"] * min(
        20, len(won)
    )
    page.wait_for_load_state()  # keys are heard once the script is there
    page.keyboard.press("/")
    page.keyboard.type("kitchen")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=kitchen**")
    # Somewhere: in the prompt, the reference, or an arm's answer.
    found = page.locator("details.row").all_text_contents()
    assert found
    assert all("kitchen" in text for text in found)
    window.picture("rows")


def _promote(window: Looker, folder: Path, decided: str) -> None:
    other = next(arm for arm in ("few-shot", "zero-shot", "lora") if arm != decided)
    page = window.go("/p/commands")
    assert page.locator("#promoted").inner_text() == decided
    page.get_by_label("Arm of the newest run").select_option(other)
    page.get_by_role("button", name="Promote").click()
    page.wait_for_url("**/p/commands#serving")
    assert page.locator("#promoted").inner_text() == other
    assert promotion.answering(folder).arm == other  # type: ignore[union-attr]
    page.get_by_label("Canary").select_option(decided)
    page.get_by_label("Share in %").fill("20")
    page.get_by_role("button", name="Set canary").click()
    page.get_by_text(f"{decided} answers 20 % of the requests").wait_for()
    window.picture("promoted")
    page.get_by_role("button", name=f"Roll back to {decided}").click()
    page.locator("#promoted", has_text=decided).wait_for()
    assert promotion.answering(folder).arm == decided  # type: ignore[union-attr]


def _playground(window: Looker, run: store.RunFolder) -> None:
    row = next(row for row in store.read_jsonl(run.rows) if row["split"] == "test")
    page = window.go("/playground")
    page.get_by_role("combobox", name="A", exact=True).select_option("commands/few-shot")
    page.get_by_role("combobox", name="B", exact=True).select_option("commands/lora")
    page.get_by_label("Prompt, as a caller sends it").fill(row["messages"][-1]["content"])
    page.keyboard.press("Control+Enter")
    for letter, arm in (("A", "few-shot"), ("B", "lora")):
        card = page.get_by_role("region", name=f"{letter}: commands/{arm}")
        card.get_by_text(re.compile(r"\d+ \+ \d+ tokens")).wait_for(timeout=60_000)
        said = {line["id"]: line["text"] for line in store.read_jsonl(run.predictions(arm))}
        # What is measured is what is served.
        assert card.locator("pre").inner_text() == said[row["id"]]
    window.picture("playground")


def test_a_job_is_paused_resumed_and_cancelled(look: Look, server: Server) -> None:
    """The server has no worker: the job stands still where it is put."""
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    text = "".join(json.dumps(row) + "\n" for row in chat_rows(90))
    file = client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="fake", training_file=file.id)
    window = look()
    page = window.go("/jobs")
    page.get_by_role("link", name=job.id).click()
    said = page.locator(".badge")
    assert said.inner_text() == "validating_files"
    for verb, status, next_verbs in (
        ("Pause", "paused", ["Cancel", "Resume"]),
        ("Resume", "queued", ["Cancel", "Pause"]),
        ("Cancel", "cancelled", []),
    ):
        page.get_by_role("button", name=verb).click()
        page.get_by_text(status, exact=True).first.wait_for()
        assert said.inner_text() == status == client.fine_tuning.jobs.retrieve(job.id).status
        assert page.locator("form.inline button").all_inner_texts() == next_verbs
    window.picture("job")


def test_by_keys_alone(look: Look) -> None:
    window = look()
    page = window.go(f"{RUN}/rows")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "it can be seen while it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = page.locator("details.row").nth(1)
    assert second.locator("summary").evaluate("e => e === document.activeElement")
    outline = second.locator("summary").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline != "none", "where the focus is can be seen"
    page.keyboard.press("Enter")
    assert second.get_attribute("open") is not None
    page.keyboard.press("k")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"


def test_hostile_rows_do_nothing(look: Look) -> None:
    window = look()
    for path in ("/", "/p/home-commands", RUN, f"{RUN}/rows", f"{RUN}/data"):
        page = window.go(path)
        assert page.title() != "1", "a row has run a script"
        assert page.locator("main img").count() == 0
    page = window.go(f"{RUN}/rows")
    blocks = page.locator("details.row").first.locator("pre").first
    assert blocks.inner_text() == HOSTILE
    directions = page.locator("details.row .snippet").nth(1)
    assert directions.evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_the_policy_stops_what_gets_in_all_the_same(browser: Any, server: Server) -> None:
    window = Looker(browser, server)
    page = window.go("/")
    page.evaluate(
        """() => {
            const made = document.createElement("script");
            made.textContent = "window.ran = 1";
            document.body.append(made);
            const picture = document.createElement("img");
            picture.setAttribute("onerror", "window.ran = 2");
            picture.src = "https://elsewhere.example/x.png";
            document.body.append(picture);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in window.complaints)
    window.close()


LUMINANCE = """
() => {
    const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (!/, 0\\)$|transparent/.test(color)) return color;
        }
        return getComputedStyle(document.body).backgroundColor;
    };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!words || element.closest("svg, [disabled], .off") || !element.checkVisibility()) continue;
        const pair = [getComputedStyle(element).color, behind(element)].map(light);
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (ratio < LEAST) poor.push([element.tagName, element.className, ratio.toFixed(2), element.textContent.slice(0, 40)].join(" "));
    }
    return poor;
}
""".replace("LEAST", str(CONTRAST))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(scheme: str, look: Look) -> None:
    window = look(color_scheme=scheme)
    for name, path in PAGES.items():
        page = window.go(path)
        assert page.evaluate(LUMINANCE) == [], f"{path}, {scheme}"
        if scheme == "dark":
            window.picture(f"{name}-dark")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    first = int(re.findall(r"\d+", paper)[0])
    assert first > 200 if scheme == "light" else first < 60


def test_a_phone_is_wide_enough(look: Look) -> None:
    window = look(viewport=PHONE, has_touch=True, is_mobile=True)
    for name, path in {**PAGES, "playground": "/playground"}.items():
        page = window.go(path)
        assert window.overflow() <= 0, f"{path} scrolls sideways"
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, input:not([type=hidden])')]"
            ".filter((e) => e.checkVisibility() && !/radio|checkbox/.test(e.type))"
            ".filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.outerHTML)"
        )
        assert small == [], "too small for a finger"
        window.picture(f"{name}-phone")


def test_with_a_key_it_asks_for_it(look: Look, server: Server) -> None:
    """The last one: from here on the server has a key."""
    keys = Keys(server.state)
    key = keys.add("boss", "admin")
    window = look()
    page = window.go("/p/commands")
    assert window.path == "/login?next=/p/commands"
    field = page.get_by_label("Key of an admin")
    assert field.evaluate("e => e === document.activeElement")
    window.picture("login")
    field.fill(key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/p/commands")
    page.get_by_role("button", name="Log out boss").click()
    page.wait_for_url("**/login")
    keys.remove("boss")

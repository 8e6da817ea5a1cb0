"""Which script and, for a few European ones, which language a text is in: a rough guess."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Literal

Side = Literal["prompt", "completion"]

_LETTERS_NEEDED = 10
_WORDS_NEEDED = 3
_WORDS_SHARE = 0.1
_ROWS_NEEDED = 20
_USUAL_SHARE = 0.9
_CHARACTERS_READ = 4000

# Frequent words that the other languages here do not share, or hardly.
_STOP_WORDS = {
    "English": "the and of to is that with for are this was it you not have from",
    "German": "der und das ist nicht ein eine mit auf für sich dem den auch wird ich",
    "French": "le les des et est une dans pour que qui sur pas avec au vous nous",
    "Spanish": "el los las y es una para por con del como más pero su está",
    "Italian": "il di che è per una non sono della gli con del nel più anche",
    "Portuguese": "um uma não para com das dos mais foi são ao você isso seu pelo",
    "Dutch": "het een van en dat niet zijn op te met voor wordt aan ook deze",
    "Swedish": "och att det som är på av för inte med har den till ett jag",
    "Polish": "nie się jest że jak ale przez był dla oraz czy tego tym które jego",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _STOP_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)


def strangers(texts: Sequence[str]) -> tuple[str, dict[int, str]]:
    """What nearly all texts are written in, and the positions of the others with their own.

    Nothing where fewer than 90 % agree, or fewer than 20 texts can be told: first the script
    is compared, and where that is Latin the language.
    """
    usual, others = _minority({i: script(text) for i, text in enumerate(texts)})
    if usual == "Latin":
        latin = {i: language(text) for i, text in enumerate(texts) if i not in others}
        spoken, foreign = _minority(latin)
        return spoken or usual, dict(sorted((others | foreign).items()))
    return usual, others


def _minority(guesses: dict[int, str | None]) -> tuple[str, dict[int, str]]:
    told = {i: found for i, found in guesses.items() if found}
    usual, count = Counter(told.values()).most_common(1)[0] if told else ("", 0)
    if len(told) < _ROWS_NEEDED or count < _USUAL_SHARE * len(told):
        return "", {}
    return usual, {i: found for i, found in told.items() if found != usual}


def script(text: str) -> str | None:
    """The script of most letters: `Latin`, `Cyrillic` …; None below 10 letters."""
    letters = filter(str.isalpha, text[:_CHARACTERS_READ])
    scripts = Counter(map(_script, letters))
    if scripts.total() < _LETTERS_NEEDED:
        return None
    most = scripts.most_common(1)[0][0]
    return "Japanese" if most in ("Kana", "Chinese") and scripts["Kana"] else most


def language(text: str) -> str | None:
    """The language with the most stop words in the text; None below 3 or 10 % of words, or if close."""
    votes: Counter[str] = Counter()
    words = re.findall(r"[^\W\d_]+", text[:_CHARACTERS_READ].lower())
    for word in words:
        votes.update(_LANGUAGES_OF.get(word, ()))
    (first, most), (_, second) = (*votes.most_common(2), ("", 0), ("", 0))[:2]
    # Code has words of many languages, but few of them.
    enough = max(_WORDS_NEEDED, _WORDS_SHARE * len(words))
    return first if most >= max(enough, 2 * second) else None


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    if name in ("HIRAGANA", "KATAKANA"):
        return "Kana"
    return "Chinese" if name == "CJK" else name.capitalize()

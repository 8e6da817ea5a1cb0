"""Text made comparable: the one normalisation that several metrics share."""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    """Text in Unicode form NFC, caseless, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def shortened(text: str, limit: int = 60) -> str:
    """At most `limit` characters of one line, quoted: for messages."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")

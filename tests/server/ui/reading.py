"""What a browser would make of a page: elements, attributes, words, forms."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """An answer of the server, read."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.html = answer, answer.text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def path(self) -> str:
        return str(self.answer.url.path)

    @property
    def token(self) -> str:
        """Of the page's forms: one token, whatever the number of forms."""
        [found] = {a["value"] for _, a in self.elements if a.get("name") == "token"}
        assert found
        return found

    @property
    def token_of_the_form(self) -> str:
        """Of the one form that a script sends."""
        [found] = [a["data-token"] for _, a in self.elements if "data-token" in a]
        assert found
        return found

    def find(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and all(attributes.get(k) == v for k, v in wanted.items())
        ]

"""Pages taken apart."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

from PIL import Image

from vqfast.pipeline.pages.comparison import COMPARISONS
from vqfast.pipeline.pages.sections import SECTIONS

VOID = {"img", "meta"}


class Page(HTMLParser):
    """A page of ``report``, whose structure is checked on the way.

    Attributes:
        elements: every element: its name and attributes.
        text: of each section by its id, and of the whole page under ``""``.
        missing: why a section, or a part of it, couldn't be made, by the section's id.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {"": ""}
        self.missing: dict[str, str] = {}
        self._open: list[str] = []
        self._section, self._missing = "", ""
        self.feed(page.decode())
        self.close()
        assert not self._open
        ids = {s.title: s.id for s in SECTIONS} | {s.title: s.id for s in COMPARISONS}
        for line in self.missing.pop("missing", "").splitlines():
            titles, _, why = line.partition(": ")
            self.missing |= {ids[title]: why for title in titles.split(", ")}

    def all(self, name: str) -> list[dict[str, str]]:
        """The attributes of all elements of a name."""
        return [attributes for element, attributes in self.elements if element == name]

    def pictures(self) -> list[Image.Image]:
        """The pictures of the page, which all must be whole and within it."""
        found: list[Image.Image] = []
        for attributes in self.all("img"):
            assert "alt" in attributes
            kind, _, data = attributes["src"].partition(",")
            assert kind == "data:image/png;base64"
            found.append(Image.open(io.BytesIO(base64.b64decode(data))))
            found[-1].load()
            assert found[-1].size == (int(attributes["width"]), int(attributes["height"]))
            assert (attributes.get("class") == "pixels") == (max(found[-1].size) <= 96)
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attributes["id"]
            self.text[self._section] = ""
        if attributes.get("class") == "missing":
            self.missing.setdefault(self._section, "")
            self._missing = tag

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if self._missing and tag == "p":
            self.missing[self._section] += "\n"
        if tag == self._missing:
            self._missing = ""

    def handle_data(self, data: str) -> None:
        for section in {"", self._section}:
            self.text[section] += data
        if self._missing:
            self.missing[self._section] += data

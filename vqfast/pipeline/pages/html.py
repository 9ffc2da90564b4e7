"""HTML that is safe by construction: all text is escaped, and only ``tag`` makes markup."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Iterable, Sequence
from importlib.resources import files

from vqfast.data.protocol import Media

# Even if something got through the escaping: no script runs, and nothing is fetched from anywhere.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
PIXELS = 96  # pictures of so many pixels or fewer along a side are enlarged without smoothing
EMPTY = {"img", "meta", "path", "polyline", "line"}  # tags that hold nothing


class Markup(str):
    """HTML, in contrast to text, which is any other ``str``."""


Attribute = str | int | float | bool | None


def tag(name: str, /, *children: str, **attributes: Attribute) -> Markup:
    """An element.

    Args:
        children: ``Markup`` as it is, any other text escaped.
        attributes: by name, ``aria_label`` for ``aria-label``, ``class_`` for ``class``; None and False leave
            the attribute out, True gives it no value.

    >>> tag("p", "1 < 2 ", tag("b", "&"), class_="small")
    '<p class="small">1 &lt; 2 <b>&amp;</b></p>'
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in EMPTY:
        return Markup(f"<{name}{given}>" if name in ("img", "meta") else f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Markup:
    """Several children in a row, text escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escaped(child) for child in children))


def escaped(text: str) -> Markup:
    """Text, whatever its characters are, as HTML."""
    printable = text.encode("utf-8", "backslashreplace").decode()  # a file's name need not be UTF-8
    return Markup(html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in printable)))


def shown(media: Media, label: str) -> Markup:
    """A picture or a sound within the page; ``label`` tells what it is to those who can't see it."""
    source = f"data:{media.kind};base64,{base64.b64encode(media.data).decode()}"
    if media.kind.startswith("audio/"):
        return tag("audio", src=source, controls=True, aria_label=label, preload="metadata")
    if media.kind.startswith("video/"):
        return tag("video", src=source, controls=True, aria_label=label, loop=True)
    if media.kind != "image/png":
        return tag("img", src=source, alt=label)
    width, height = struct.unpack_from(">II", media.data, 16)
    small = max(width, height) <= PIXELS
    return tag("img", src=source, alt=label, width=width, height=height, class_="pixels" if small else None)


def table(
    head: Sequence[str], lines: Iterable[Sequence[str]], caption: str, *, silent: bool = False
) -> Markup:
    """A table, whose first column has the heads of the lines; a narrow screen scrolls it by itself.

    Args:
        silent: whether only screen readers tell the caption, as a heading has said it.
    """
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in lines
    )
    title = tag("caption", caption, class_="silent" if silent else None)
    whole = tag("table", title, tag("thead", top), tag("tbody", *body))
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def page(title: str, *body: Markup) -> bytes:
    """A whole document, UTF-8, that needs nothing but itself."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(files("vqfast.pipeline.pages").joinpath("page.css").read_text("utf-8"))),
    )
    document = tag("html", head, tag("body", *body), lang="en")
    return f"<!doctype html>\n{document}\n".encode()


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'

"""Serves the handbook at /docs, rendered from the Markdown files in `fundsvc/handbook`.

The pages load no scripts, and their content security policy permits no other host.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import NamedTuple

from aiohttp import hdrs, web
from markdown_it import MarkdownIt
from markdown_it.token import Token

from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.static_files import Asset, answer_asset

CHAPTERS = (
    "index",
    "concepts",
    "mutual",
    "connect",
    "events",
    "api",
    "operations",
    "runbook",
    "security",
    "performance",
    "decisions",
    "contributing",
)
"""The chapters in order; each is a Markdown file."""

POLICY = "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

CONTENTS_LEVELS = {"h1": 1, "h2": 2}
"""Headings that the table of contents lists."""

_CHAPTER_LINK = re.compile(r"(\w+)\.md(#.*)?")
"""A link to another chapter, in the form that also works in a checkout."""


class Heading(NamedTuple):
    """A heading of a chapter: its level from 1, its anchor, and its text."""

    level: int
    anchor: str
    text: str


class Chapter(NamedTuple):
    """A rendered chapter."""

    name: str
    headings: Sequence[Heading]
    body: str


class Handbook:
    """The endpoints of the handbook."""

    def __init__(self) -> None:
        self._pages = {chapter.name: _page(chapter) for chapter in chapters()}
        style = files("fundsvc") / "handbook" / "handbook.css"
        self._pages["handbook.css"] = Asset(style.name, style.read_bytes)
        programs = (files("fundsvc") / "handbook" / "producers").iterdir()
        self._producers = {program.name: program.read_text() for program in programs if program.is_file()}
        self.endpoints = (
            Endpoint("/docs", self.index, {200: Media("text/html")}),
            Endpoint("/docs/{name}", self.page, {200: Media("text/html")}),
            Endpoint("/docs/producers/{name}", self.producer, {200: Media("text/plain")}),
        )

    async def index(self, _: web.Request) -> web.StreamResponse:
        """Redirects to the first chapter, so that relative links of all chapters have the same base."""
        return web.Response(status=302, headers={hdrs.LOCATION: "docs/index"})

    async def page(self, request: web.Request) -> web.Response:
        """A chapter, or the style sheet."""
        asset = self._pages.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        return await answer_asset(request, asset, {"Content-Security-Policy": POLICY, hdrs.CACHE_CONTROL: "no-cache"})

    async def producer(self, request: web.Request) -> web.Response:
        """The source of a complete producer."""
        source = self._producers.get(request.match_info["name"])
        if source is None:
            raise web.HTTPNotFound
        return web.Response(text=source, headers={"X-Content-Type-Options": "nosniff"})


@cache
def chapters() -> Sequence[Chapter]:
    """Returns all chapters, rendered once per process."""
    return [_chapter(name) for name in CHAPTERS]


def _chapter(name: str) -> Chapter:
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse((files("fundsvc") / "handbook" / f"{name}.md").read_text())
    headings = list(_headings(tokens))
    for token in _flat(tokens):
        link = _CHAPTER_LINK.fullmatch(str(token.attrs.get("href", "")))
        if link:
            token.attrSet("href", link[1] + (link[2] or ""))
    # Long lines scroll, so the keyboard must reach them.
    text = parser.renderer.render(tokens, parser.options, {}).replace("<pre>", '<pre tabindex="0">')
    return Chapter(name, headings, text)


def _headings(tokens: Sequence[Token]) -> Iterator[Heading]:
    """Sets the anchors of all headings; yields the headings of the table of contents."""
    for token, text in pairwise(tokens):
        if token.type == "heading_open":
            anchor = re.sub(r"[^\w -]", "", text.content.lower()).replace(" ", "-")
            token.attrSet("id", anchor)
            if token.tag in CONTENTS_LEVELS:
                yield Heading(CONTENTS_LEVELS[token.tag], anchor, text.content.replace("`", ""))


def _flat(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _flat(token.children or ())


def _page(chapter: Chapter) -> Asset:
    template = Template((files("fundsvc") / "handbook" / "page.html").read_text())
    title = chapter.headings[0].text
    content = template.substitute(title=escape(title), contents=_contents(chapter), body=chapter.body).encode()
    return Asset("page.html", lambda: content)


def _contents(shown: Chapter) -> str:
    """Returns the table of contents: all chapters, and the sections of the shown one."""
    return "\n".join(_contents_of(chapter, is_shown=chapter is shown) for chapter in chapters())


def _contents_of(chapter: Chapter, *, is_shown: bool) -> str:
    title, *sections = chapter.headings
    current = ' aria-current="page"' if is_shown else ""
    listed = "".join(f'<li><a href="#{section.anchor}">{escape(section.text)}</a></li>' for section in sections if is_shown)
    inner = f"<ul>{listed}</ul>" if listed else ""
    return f'<li><a href="{chapter.name}"{current}>{escape(title.text)}</a>{inner}</li>'

# SPDX-License-Identifier: Apache-2.0
"""What a browser sees in HTML: its tags with their attributes, and its comments.

A plain reading of the tokenizer in the HTML standard (§13.2.5), one character at a time, with nothing of how
`mail.template` goes about it: the judge of that module's tests.
"""

from __future__ import annotations

import re

SPACE = " \t\n\f\r"
RAW = {"script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"}

Seen = tuple[str, ...]


def seen_in(html: str) -> list[Seen]:
    """`("tag", name, attribute, ...)` for each tag, end tags with `/`; `("comment",)` for each comment."""
    return _Reader(html).read()


class _Reader:
    def __init__(self, html: str) -> None:
        self.html = html
        self.at = 0
        self.seen: list[Seen] = []

    def read(self) -> list[Seen]:
        while self.at < len(self.html):
            if self.html[self.at] != "<":
                self.at += 1
                continue
            rest = self.html[self.at + 1 : self.at + 2]
            if rest.isascii() and rest.isalpha():
                self._tag("")
            elif rest == "/":
                after = self.html[self.at + 2 : self.at + 3]
                if after.isascii() and after.isalpha():
                    self._tag("/")
                elif after == ">":
                    self.at += 3
                elif after:
                    self._bogus_comment()
                else:
                    break
            elif rest == "?" or (rest == "!" and not self.html.startswith("<!--", self.at)):
                self._bogus_comment()
            elif rest == "!":
                self._comment()
            else:
                self.at += 1
        return self.seen

    def _bogus_comment(self) -> None:
        self.seen.append(("comment",))
        end = self.html.find(">", self.at)
        self.at = len(self.html) if end < 0 else end + 1

    def _comment(self) -> None:
        self.seen.append(("comment",))
        at = self.at + 4
        for abrupt in (">", "->"):
            if self.html.startswith(abrupt, at):
                self.at = at + len(abrupt)
                return
        end = re.compile("--!?>").search(self.html, at)
        self.at = end.end() if end else len(self.html)

    def _tag(self, kind: str) -> None:
        """From the `<` to behind the `>`."""
        html = self.html
        at = self.at + 1 + len(kind)
        start = at
        while at < len(html) and html[at] not in SPACE + "/>":
            at += 1
        name = html[start:at].lower()
        attributes: list[str] = []
        while at < len(html) and html[at] != ">":
            if html[at] in SPACE + "/":
                at += 1
                continue
            start = at  # an attribute's name; it may begin with "="
            at += 1
            while at < len(html) and html[at] not in SPACE + "/>=":
                at += 1
            attributes.append(html[start:at])
            behind = at
            while behind < len(html) and html[behind] in SPACE:
                behind += 1
            if html[behind : behind + 1] != "=":
                continue
            at = behind + 1
            while at < len(html) and html[at] in SPACE:
                at += 1
            quote = html[at : at + 1]
            if quote and quote in "\"'":
                end = html.find(quote, at + 1)
                at = len(html) if end < 0 else end + 1
            else:
                while at < len(html) and html[at] not in SPACE + ">":
                    at += 1
        if at >= len(html):
            self.seen.append(("unfinished", kind + name, *attributes))
        else:
            self.seen.append(("tag", kind + name, *attributes))
        self.at = at + 1
        if not kind and name in RAW and at < len(html):
            end = re.compile(rf"</{name}(?=[ \t\n\f\r/>])", re.IGNORECASE | re.ASCII).search(html, self.at)
            self.at = end.start() if end else len(html)

# SPDX-License-Identifier: Apache-2.0
"""JSON into a type of `shapes`: at once when all is well, and thoroughly when it is not.

msgspec reads octets into a struct several times as fast as the interpreter's own JSON makes a dictionary, and base64
without a string in between.  But it keeps the last of two members with the same name, and a first error is all that it
tells.  So what it reads is taken only when it can be shown that nothing was dropped; everything else is read again,
by the strict reader of `body`, and said in the words and with the codes of the contract.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.body import has_too_many_values, load_object
from hepmaild.mail.content import Content

T = TypeVar("T", bound=msgspec.Struct)

MAX_ECHO = 80
_COMPLAINT = re.compile(r"Expected `([^`]+)`, got `([^`]+)`(?: - at `\$\.([^`]*)`)?")
_SAID = {
    "array": "an array",
    "bool": "true or false",
    "bytes": "a string in base64",
    "float": "a number",
    "int": "a whole number",
    "object": "an object",
    "str": "a string",
}
_TYPE_NAMES = {str: "str", bool: "bool", int: "int", float: "float", list: "array", dict: "object", type(None): "null"}


class Shape(Generic[T]):
    """One type of request body, and its reader."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._names = frozenset(kind.__struct_encode_fields__)

    def decode(self, content: Content) -> T | None:
        """The body, if it is nothing but known members of the right types; None: it has to be looked at closely."""
        octets = content.head(content.size)
        if has_too_many_values(octets):
            return None
        try:
            value = self._decoder.decode(octets)
        except (ValueError, RecursionError):
            return None
        # A member that stands there twice, an unknown one, and null all leave quotes behind that `value` does not
        # account for.  Only one written as an escape could make up for them.
        if octets.count(b'"') != _quotes(value) or (b"\\" in octets and b"\\u0022" in octets):
            return None
        return value

    def convert(self, payload: dict[str, Any]) -> T:
        """The same, from a dictionary.  Raises RefusedError: INVALID_FIELD, and which one.

        Unknown members are ignored; required ones that are missing are the caller's business.
        """
        known = {name: value for name, value in payload.items() if name in self._names}
        try:
            return msgspec.convert(known, self.kind)
        except msgspec.ValidationError as error:
            raise _wrong_type(str(error), known) from None
        except UnicodeEncodeError:  # the name of a member further in
            text = "A name in the JSON holds half of a surrogate pair, which is no character."
            raise RefusedError(Refusal(ErrorKind.INVALID_FIELD, text)) from None

    def load(self, content: Content) -> T:
        """The body, which is closed.  Raises RefusedError: INVALID_JSON, INVALID_FIELD."""
        try:
            value = self.decode(content)
            return self.convert(load_object(content)) if value is None else value
        finally:
            content.close()


def _quotes(value: object) -> int:
    """How many quotes stand in the JSON of `value` when none of its members is null."""
    if isinstance(value, str):
        return 2 + value.count('"')
    if isinstance(value, msgspec.Struct):
        members = [each for each in msgspec.structs.astuple(value) if each is not None]
        return 2 * len(members) + sum(map(_quotes, members))
    if isinstance(value, bytes):
        return 2
    if isinstance(value, list):
        return sum(map(_quotes, value))
    if isinstance(value, dict):
        return sum(map(_quotes, value)) + sum(map(_quotes, value.values()))
    return 0


def _wrong_type(complaint: str, payload: dict[str, Any]) -> RefusedError:
    """msgspec's complaint in our words."""
    found = _COMPLAINT.match(complaint)
    if found is None:
        return RefusedError(Refusal(ErrorKind.INVALID_FIELD, f"A field has a value that it cannot have: {complaint}."))
    expected = " or ".join(_SAID[word] for word in found[1].split(" | ") if word in _SAID)
    field = found[3] or ""
    if field.endswith("[...]"):
        field = field.removesuffix("[...]")
        members = payload[field].items()
        field += "." + next(echo(name) for name, value in members if _TYPE_NAMES.get(type(value)) == found[2])
    return RefusedError(Refusal(ErrorKind.INVALID_FIELD, f"{field} must be {expected}.", field=field))


def echo(text: str) -> str:
    """A caller's own word, fit to be given back."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:MAX_ECHO])
    return shown + "..." if len(text) > MAX_ECHO else shown

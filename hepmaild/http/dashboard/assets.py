# SPDX-License-Identifier: Apache-2.0
"""Style sheets, scripts and pictures: read once, served under a name that changes with their content."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from quart import Blueprint
from quart.wrappers import Response
from werkzeug.exceptions import NotFound

TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
A_YEAR = "public, max-age=31536000, immutable"


class Assets:
    """The files of `hepmaild/http/static`.

    All names share one hash, so that modules may import one another by relative paths.
    """

    def __init__(self) -> None:
        folder = files("hepmaild.http").joinpath("static")
        found = sorted((entry for entry in folder.iterdir() if entry.is_file()), key=lambda entry: entry.name)
        self._files = {entry.name: entry.read_bytes() for entry in found}
        digest = hashlib.sha256()
        for name, octets in self._files.items():
            digest.update(f"{name}:{len(octets)}:".encode() + octets)
        self.version = digest.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Where a file is served; KeyError if there is none of that name."""
        if name not in self._files:
            raise KeyError(name)
        return f"/static/{self.version}/{name}"

    def blueprint(self) -> Blueprint:
        """Serves them.  An old version's name gives the present file, but is not kept."""
        blueprint = Blueprint("static", __name__)

        @blueprint.get("/static/<version>/<name>")
        async def static(version: str, name: str) -> Response:
            octets = self._files.get(name)
            kind = TYPES.get(name.rpartition(".")[2])
            if octets is None or kind is None:
                raise NotFound
            response = Response(octets, content_type=kind)
            response.headers["Cache-Control"] = A_YEAR if version == self.version else "no-cache"
            response.headers["X-Content-Type-Options"] = "nosniff"
            return response

        return blueprint

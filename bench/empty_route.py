# SPDX-License-Identifier: Apache-2.0
"""The floor of the HTTP door: a Quart-Trio route that does nothing, on the same hypercorn with the same TLS.

`python -m bench.empty_route CERTIFICATE PRIVATE_KEY` prints `listening PORT`.
"""

from __future__ import annotations

import socket
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart_trio import QuartTrio


def make_app() -> QuartTrio:
    app = QuartTrio("empty")

    @app.post("/empty")
    async def empty() -> dict[str, object]:
        await request.get_data()  # an empty route that left the body unread would compare apples with stones
        return {"ok": True, "data": {}}

    return app


async def _main(certificate: str, private_key: str) -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    listening.setblocking(False)
    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.certfile = certificate
    config.keyfile = private_key
    config.accesslog = None
    config.alpn_protocols = ["h2", "http/1.1"]
    config.keep_alive_timeout = 60
    print(f"listening {listening.getsockname()[1]}", flush=True)
    await serve(make_app(), config)


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], sys.argv[2])

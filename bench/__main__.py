# SPDX-License-Identifier: Apache-2.0
"""`python -m bench [relay|memory|http|drain|…]`: one command each, see --help."""

from __future__ import annotations

import argparse
import sys

from bench.generator import BenchFailed
from tests.peers.processes import PeerFailed
from tests.peers.programs import MissingProgram


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    relay = commands.add_parser("relay", help="rates, processor time and replies beside Postfix (the default)")
    relay.add_argument("--connections", type=int, nargs="+", default=[20, 100])
    relay.add_argument("--messages", type=int, default=3000, help="in each run")
    relay.add_argument("--rounds", type=int, default=5)
    relay.add_argument("--pipelining", action="store_true", help="MAIL, RCPT and DATA at once")
    relay.add_argument("--only", nargs="+", default=["postfix", "hepmaild", "hepmaild, after-relay"])
    relay.add_argument("--no-accept-only", action="store_true")
    relay.add_argument(
        "--loads", type=float, nargs="*", default=[0.3, 0.6], help="offered to all alike, as parts of Postfix's rate"
    )
    memory = commands.add_parser("memory", help="idle, many sessions, large messages, a long queue")
    memory.add_argument("--waiting", type=int, default=100_000, help="messages waiting in the queue")
    memory.add_argument("--only", nargs="+", default=["idle", "sessions", "large", "waiting"])
    http = commands.add_parser("http", help="the HTTP door beside an empty route on the same server")
    http.add_argument("--connections", type=int, default=20)
    http.add_argument("--messages", type=int, default=3000)
    http.add_argument("--rounds", type=int, default=5)
    isolation = commands.add_parser("isolation", help="whether next hops in trouble delay the others")
    isolation.add_argument("--rate", type=float, default=150, help="offered, messages a second")
    isolation.add_argument("--seconds", type=float, default=30, help="of each run")
    isolation.add_argument("--rounds", type=int, default=5)
    isolation.add_argument("--retry-after-s", type=int, default=10)
    isolation.add_argument("--weight", type=int, default=20, help="of each bad destination, an even share being 1")
    isolation.add_argument("--only", nargs="+", choices=["routes", "destinations"], default=["routes", "destinations"])
    drain = commands.add_parser("drain", help="a backlog made while the next hop was down, once it is up")
    drain.add_argument("--backlog", type=int, default=100_000, help="messages that wait")
    drain.add_argument("--messages", type=int, default=5000, help="in each run of accepting and relaying")
    drain.add_argument("--connections", type=int, default=100)
    drain.add_argument("--rounds", type=int, default=1)
    drain.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    backlog = commands.add_parser("backlog", help="accepting, memory and claims with a million that waits")
    backlog.add_argument("--waiting", type=int, default=1_000_000)
    backlog.add_argument("--messages", type=int, default=3000, help="in each run")
    backlog.add_argument("--connections", type=int, default=20)
    backlog.add_argument("--rounds", type=int, default=5)
    backlog.add_argument("--size", type=int, default=1024, help="octets of each waiting message")
    backlog.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    pages = commands.add_parser("pages", help="every page and search with a million messages")
    pages.add_argument("--messages", type=int, default=1_000_000)
    pages.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    pages.add_argument("--times", type=int, default=40, help="each page")
    live = commands.add_parser("live", help="what open log pages cost the mail")
    live.add_argument("--pages", type=int, default=50)
    live.add_argument("--events", type=float, default=500, help="a second, offered")
    live.add_argument("--seconds", type=float, default=20, help="of each run")
    live.add_argument("--rounds", type=int, default=5)
    live.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    live.add_argument("--quick", action="store_true", help="two short runs each")
    profile = commands.add_parser("profile", help="where the daemon's time goes, by function and by thread")
    profile.add_argument("--connections", type=int, default=20)
    profile.add_argument("--messages", type=int, default=3000)
    profile.add_argument("--reply", choices=["on-commit", "after-relay"], default="on-commit")
    profile.add_argument("--functions", type=int, default=45, help="how many functions to show")
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in {"-h", "--help"}):
        arguments = ["relay", *arguments]
    return parser.parse_args(arguments)


def main() -> int:
    options = _arguments()
    try:
        if options.command == "relay":
            from bench import relay

            relay.run(
                relay.Plan(
                    connections=tuple(options.connections),
                    messages=options.messages,
                    rounds=options.rounds,
                    pipelining=options.pipelining,
                    servers=tuple(options.only),
                    accept_only=not options.no_accept_only,
                    loads=tuple(options.loads),
                )
            )
        elif options.command == "memory":
            from bench import memory

            return memory.run(tuple(options.only), options.waiting)
        elif options.command == "isolation":
            from bench import isolation

            return isolation.run(
                isolation.Plan(
                    rate=options.rate,
                    seconds=options.seconds,
                    rounds=options.rounds,
                    retry_after_s=options.retry_after_s,
                    weight=options.weight,
                    only=tuple(options.only),
                )
            )
        elif options.command == "drain":
            from bench import drain

            return drain.run(options.backlog, options.connections, options.messages, options.rounds, options.database)
        elif options.command == "backlog":
            from bench import backlog

            return backlog.run(
                options.waiting, options.messages, options.connections, options.rounds, options.size, options.database
            )
        elif options.command == "pages":
            from bench import pages

            return pages.run(options.messages, options.database, options.times)
        elif options.command == "live":
            from bench import live

            plan = live.Plan(options.pages, options.events, options.seconds, options.rounds)
            return live.run(live.quick(plan) if options.quick else plan, options.database)
        elif options.command == "profile":
            from bench import where

            where.run(options.connections, options.messages, options.reply, options.functions)
        else:
            from bench import http_door

            http_door.run(options.connections, options.messages, options.rounds)
    except (BenchFailed, MissingProgram, PeerFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

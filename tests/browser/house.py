# SPDX-License-Identifier: Apache-2.0
"""A service as it looks after some weeks: three accounts, mail in every state, a month of history.

The mail really goes through the daemon and a next hop that refuses, defers and hangs up; afterwards, while the daemon
is stopped, the database is made to believe that it happened over a month.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from typing import Any

from sqlalchemy import Connection, select

from hepmaild.cli.backend import with_store
from hepmaild.config_load import load
from hepmaild.mail.template import Wording
from hepmaild.storage import templates
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import account
from hepmaild.storage.store import Store
from hepmaild.template_rules import TemplateWish
from tests.browser.month import pass_a_month
from tests.peers.certificates import make_certificate
from tests.peers.daemon import ROOT, Daemon, open_daemon, open_smtp, post
from tests.peers.processes import open_folder
from tests.peers.sink import capture_sink

OPERATOR = "postmaster@mail.example"
OWNER = "anna.berger@blumen-berger.example"
NEWCOMER = "new@start.example"
READER = "buchhaltung@blumen-berger.example"
INVITED = "tim@blumen-berger.example"
PERSONS = (OPERATOR, OWNER, NEWCOMER, READER, INVITED)
SHOP, NEWS = "bestellung@blumen-berger.example", "neuigkeiten@blumen-berger.example"
GONE, FULL, CUT, TOLD = (
    "frieda.lang@nirgends.example",
    "juergen.gross@mueller-soehne.example",
    "einkauf@hotel-seeblick.example",
    "redaktion@lokalblatt.example",
)
LONG = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 50}.example"
TREAT = (f"reject={GONE}", f"defer={FULL}", f"drop={CUT}", f"nodot={TOLD}")
PEOPLE = ("maria.huber", "tom.wright", "aylin.kaya", "o.lindqvist", "p.moreau", "k.tanaka", "d.novak", "s.oconnor")
PLACES = ("example.net", "example.org", "post.example", "web.example", "mail.example.com")
SUBJECTS = (
    "Ihre Bestellung {n} ist unterwegs", "Order {n} confirmed", "Rechnung {n}", "Ihr Strauß wird gerade gebunden",
    "Your password was changed", "Lieferung heute zwischen 9 und 12 Uhr", "Danke für Ihre Bewertung",
)  # fmt: skip
HTML = (
    '<div style="font-family:sans-serif;max-width:520px"><h1 style="color:#0b6e66">Schöne Grüße 🌷</h1><p>Ihr Strauß '
    "ist unterwegs und kommt <b>heute zwischen 9 und 12 Uhr</b>.</p><script>alert(1)</script>"
    '<img src="https://tracker.invalid/pixel.png" alt=""><p>Blumen Berger</p></div>'
)
# What the browser says about that HTML, and about nothing else: no script of it runs, nothing is fetched.
KEPT_OUT = r"^Blocked script execution in '.*/html'|^Loading the image 'https://tracker\.invalid/pixel\.png' violates"


@dataclass
class House:
    """The running service.  links: tokens of one-time links, by person; ids: messages, by what became of them."""

    daemon: Daemon
    key: str
    chaos_key: str = ""
    links: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.daemon.ports['https']}"

    def link(self, email: str) -> str:
        """The one-time link of somebody, at the port that the service has here."""
        return f"{self.url}/link/{self.links[email]}"

    def send(self, to: Any, subject: str, key: str = "", **fields: Any) -> str:
        """By HTTP; the message's id."""
        body = {"to": to, "subject": subject, "text": "Guten Tag,\n\nvielen Dank.\n", **fields}
        status, answer, _ = post(self.daemon, body, key or self.key)
        assert status in (200, 202), answer
        return str(answer["data"]["messageId"])


@contextlib.contextmanager
def open_house(*, crowd: int = 260) -> Iterator[House]:
    """Everything; `crowd` messages beside those that are looked at one by one."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_folder("house"))
        sink = stack.enter_context(capture_sink(content=False, tls=make_certificate(folder), treat=TREAT))
        upstream = {"name": "upstream", "kind": "smtp", "host": "127.0.0.1", "port": sink.port, "tls": "opportunistic"}
        changes = {
            "delivery": {
                "retry_after_s": [900, 3600],
                "final_dot_timeout_s": 60,
                "attempt_timeout_s": 61,
                "body_days": 30,
            },
            "route": [upstream, {"name": "playground", "kind": "sandbox"}],
            "sender": [{"address": "noreply@mail.example", "route": "playground", "default": True}],
            "plans": {"large": {"calls_per_minute": 100_000}},
        }
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, changes=changes, start=False))
        house = House(daemon, "")
        _furnish(house)
        daemon.start()
        _special(house)
        _crowd(house, crowd)
        daemon.terminate()
        _age(house)
        daemon.start()
        yield house


_MANY = """
import contextlib, io, json, sys
from hepmaild.cli.app import run
config, commands = sys.argv[1], json.load(sys.stdin)
answers = []
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = run(["-c", config, *command, "--json"])
    assert status == 0, (command, status, said.getvalue())
    answers.append(json.loads(said.getvalue()))
json.dump(answers, sys.stdout)
"""


def _many(daemon: Daemon, *commands: str) -> list[Any]:
    """What commands printed, run in one process: starting Python for each takes longer than all of them."""
    config = str(daemon.config_path)
    done = subprocess.run(
        [sys.executable, "-c", _MANY, config], input=json.dumps([shlex.split(each) for each in commands]),
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def _furnish(house: House) -> None:
    house.daemon.write_settings()
    *_, shop, _newsletter, old, trouble = _many(
        house.daemon,
        f"account add {OPERATOR} --credits 1000 --operator",
        f"account add {OWNER} --credits 12000 --plan large",
        f"account add {NEWCOMER}",
        "account add sleepy@late.example --credits 12",
        "account suspend sleepy@late.example",
        f"user add {OWNER} {READER} --scope read_only",
        f"user add {OWNER} {INVITED} --scope admin",
        f"sender add {SHOP} --route upstream --account {OWNER} --default",
        f"sender add {NEWS} --route upstream --account {OWNER} --daily-cap 4",
        f"smtp-server add {OWNER} --name Werkstatt --host smtp.blumen-berger.example "
        "--address werkstatt@blumen-berger.example --daily-cap 200",
        f"suppression add {OWNER} never@again.example --reason 'asked to be left alone'",
        f"key mint {OWNER} --name shop",
        f"key mint {OWNER} --name newsletter --permission smtp --sender {NEWS}",
        f"key mint {OWNER} --name 'altes CRM' --from-ip 192.0.2.0/24",
        f"key mint {OWNER} --name trouble --chaos 4xx",
    )
    house.key, house.chaos_key = shop["key"], trouble["key"]
    made = _many(house.daemon, f"key disable {old['id']}", *(f"account link {each}" for each in PERSONS))
    house.links = dict(zip(PERSONS, map(_token_of, made[1:]), strict=True))
    _write_templates(house)


def _write_templates(house: House) -> None:
    """One that was saved several times, and one that is new."""
    words = Wording(
        "Ihre Bestellung {{order}} ist unterwegs",
        '<h1 style="color:#0b6e66">Guten Tag, {{name}}</h1>\n<p>Ihr Strauß <b>{{order}}</b> kommt heute.</p>\n'
        '<p><a href="https://blumen-berger.example/?o={{order}}">Wo ist er?</a></p>\n',
        "Guten Tag, {{name}},\n\nIhr Strauß {{order}} kommt heute.\n",
    )
    wish = TemplateWish("Bestellung unterwegs", "order-shipped", words, {"name": "Maria Huber", "order": "4711"})
    later = replace(wish, wording=replace(words, html=(words.html or "").replace("heute", "<i>heute</i>")))
    actor = Actor("", OWNER, "192.0.2.7", "dashboard")

    def write(conn: Connection) -> None:
        account_id = conn.execute(select(account.c.id).where(account.c.email == OWNER)).scalar_one()
        template_id, second = "0b7b6ba0-4c5b-4dbb-8e26-0f8a1f0f6c01", "0b7b6ba0-4c5b-4dbb-8e26-0f8a1f0f6c02"
        now_us = time.time_ns() // 1000
        templates.create(conn, account_id, actor, template_id, wish, now_us)
        templates.save(conn, account_id, actor, template_id, later, 1, now_us)
        templates.restore(conn, account_id, actor, template_id, 1, 2, now_us)
        templates.create(conn, account_id, actor, second, replace(wish, name="Neues Passwort", key="reset"), now_us)

    async def run(store: Store) -> None:
        await store.write(write)

    with_store(load(house.daemon.config_path, {}), run, upgrade=False)


def _token_of(made: dict[str, Any]) -> str:
    link = next(value for value in made.values() if isinstance(value, str) and "/link/" in value)
    return link.rpartition("/")[2]


def _special(house: House) -> None:
    """One of each kind."""
    send, ids = house.send, house.ids
    ids["sent"] = send(
        "Maria Huber <maria.huber@example.net>", "Ihre Bestellung 4711 ist unterwegs", html=HTML,
        cc=["lager@blumen-berger.example"], bcc=["archiv@blumen-berger.example"],
    )  # fmt: skip
    ids["failed"] = send([GONE, "tom.wright@example.org"], "Ihr Strauß wird gerade gebunden")
    refused = {"to": TOLD, "subject": "Pressemitteilung: Schnittblumen im März", "text": "Guten Tag"}
    assert post(house.daemon, refused, house.key)[0] not in (200, 202)
    ids["deferred"] = send(FULL, "Rechnung 2026-0042")
    ids["in_doubt"] = send(CUT, "Angebot für die Tischdekoration, 12 Tische")
    ids["rtl"] = send("layla@post.example", "طلبك في الطريق 🌷 (رقم 8812)")
    ids["emoji"] = send("k.tanaka@web.example", "🎉👩‍🌾🌷🌷🌷 Grüße aus Österreich — ÄÖÜß, 花束をお届けします")
    ids["long"] = send(LONG, "W" * 800)
    ids["held"] = send(FULL, "Erinnerung: Rechnung 2026-0031")
    ids["cancelled"] = send(FULL, "Doppelt bestellt?")
    _many(house.daemon, f"queue hold {ids['held']}", f"queue cancel {ids['cancelled']}")
    ids["chaos"] = send("p.moreau@example.net", "Was tun wir, wenn niemand antwortet?", house.chaos_key)
    ids["many"] = send([f"team{n}@example.org" for n in range(18)], "Team meeting on Thursday")
    for n in range(6):
        send(f"{PEOPLE[n]}@example.net", "Neuigkeiten im März", **{"from": NEWS})
    _by_smtp(house)


def _by_smtp(house: House) -> None:
    message = EmailMessage()
    message["From"], message["To"] = f"Blumen Berger <{SHOP}>", "d.novak@mail.example.com"
    message["Subject"] = "Lieferschein und Rechnung"
    message.set_content("Anbei beides.\n\nBlumen Berger\n")
    message.add_alternative("<p>Anbei <b>beides</b>.</p>", subtype="html")
    message.add_attachment(b"%PDF-1.7 not really", maintype="application", subtype="pdf", filename="Rechnung März.pdf")
    message.add_attachment("a;b\n1;2\n", filename="Lieferschein.csv")
    with open_smtp(house.daemon, house.key) as session:
        session.send_message(message)
    path = house.daemon.state_dir / "hepmaild.db"
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as base:
        (house.ids["attached"],) = base.execute(
            "select id from message where subject = ?", (message["Subject"],)
        ).fetchone()


def _crowd(house: House, crowd: int) -> None:
    """Ordinary mail over one SMTP session."""
    chance = random.Random(4)
    with open_smtp(house.daemon, house.key) as session:
        for n in range(crowd):
            message = EmailMessage()
            message["From"] = f"Blumen Berger <{SHOP}>"
            to = GONE if n % 29 == 7 else f"{chance.choice(PEOPLE)}@{chance.choice(PLACES)}"
            message["To"] = to
            message["Subject"] = chance.choice(SUBJECTS).format(n=4000 + n)
            message.set_content("Vielen Dank.\n" * chance.randrange(1, 60))
            with contextlib.suppress(Exception):  # what is refused at once is refused
                session.send_message(message)


def _age(house: House) -> None:
    """Let the crowd's mail have happened over a month; and one recipient have more than any door lets in now."""
    path = house.daemon.state_dir / "hepmaild.db"
    pass_a_month(path, house.ids.values())
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("update account set plan = 'standard'")
        words = ("x" * 891) + "@long.example"
        base.execute("update recipient set address = ? where message_id = ?", (words, house.ids["long"]))

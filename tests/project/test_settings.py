# SPDX-License-Identifier: Apache-2.0
"""The settings loader: what it understands, and how it says each mistake."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from hepmaild import config, config_docs
from hepmaild.cli.common import Invocation
from hepmaild.config_load import SettingsError, find_settings_file, load, parse
from hepmaild.directory import settings_senders
from hepmaild.mail.address import check_address
from hepmaild.policy import make_book, pick_sender
from hepmaild.storage.directory import SenderRow

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "etc" / "hepmaild.toml"
ROUTE = '[[route]]\nname = "up"\nkind = "smtp"\nhost = "mail.example.net"\n'


def read(text: str, base: Path = Path("/etc"), **environ: str) -> config.Settings:
    return parse(text, source="test.toml", base=base, environ=environ)


def problems(text: str, base: Path = Path("/etc"), **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(text, base, **environ)
    return [str(p) for p in caught.value.problems]


def test_an_empty_file_gives_the_defaults() -> None:
    assert read("") == config.Settings()


def test_the_reference_says_the_defaults() -> None:
    assert load(REFERENCE, {}) == config.Settings()


def test_the_reference_has_every_key(tmp_path: Path) -> None:
    text = REFERENCE.read_text()
    opened = re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE).replace("/etc/hepmaild/upstream.password", "secret")
    (tmp_path / "secret").write_text("hunter2\n")
    settings = read(opened, tmp_path)
    assert settings.route[0].password == "hunter2"
    assert settings.sender[0].default
    for spec in dataclasses.fields(config.Settings):
        cls = {"route": config.RouteSettings, "sender": config.SenderSettings, "plans": config.Plan}.get(
            spec.name, type(spec.default)
        )
        for key in dataclasses.fields(cls):
            assert re.search(rf"^#?{key.name}(_file)? = ", text, re.MULTILINE), f"{spec.name}.{key.name} is not there"


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == config_docs.render(), "run `make docs`"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[smpt]\n", "smpt: there is no such section; did you mean smtp?"),
        ("[smtp]\nreplays = 1\n", "smtp.replays: there is no such key"),
        ("[smtp]\nreplay_window = 1\n", "did you mean replay_window_s?"),
        ("smtp = 3\n", "smtp: must be a table"),
        ('[smtp]\nreply = "later"\n', 'smtp.reply: must be "after-relay" or "on-commit", not \'later\''),
        (
            '[smtp]\nreplay_window_s = "600"\n',
            "smtp.replay_window_s: must be a whole number from 0 to 86400, not '600'",
        ),
        ("[smtp]\nreplay_window_s = true\n", "must be a whole number"),
        ("[smtp]\nreplay_window_s = 1.5\n", "must be a whole number"),
        ("[smtp]\nreplay_window_s = -1\n", "from 0 to 86400, not -1"),
        ("[smtp]\nreplay_window_s = 86401\n", "from 0 to 86400, not 86401"),  # words are forgotten after a day
        (ROUTE + '[[sender]]\naddress = "a@x.example"\nroute = "up"\ndaily_cap = 2147483648\n', "to 1000000000, not"),
        ("[server]\ndrain_timeout_s = inf\n", "must be a number from 0 to 3600, not inf"),
        ("[server]\ndrain_timeout_s = nan\n", "must be a number from 0 to 3600, not nan"),
        ('[server]\nhostname = "a b"\n', "server.hostname: must be a host name"),
        ('[server]\nhostname = "a\\r\\nb"\n', "must be text without control characters"),
        ('[smtp]\nstarttls = "[::]:587"\n', "smtp.starttls: must be a list of strings"),
        ('[smtp]\nstarttls = ["::1:587"]\n', "in brackets"),
        ('[smtp]\nstarttls = ["[::]:99999"]\n', "port from 0 to 65535"),
        ('[smtp]\nstarttls = ["localhost"]\n', "smtp.starttls: must be"),
        ('[smtp]\nstarttls = ["[::]:465"]\n', "smtp.implicit_tls: [::]:465 is taken by smtp.starttls already"),
        ('[http]\ntrusted_proxies = ["10.0.0.1/8"]\n', "http.trusted_proxies: must be a network"),
        ('[http]\npublic_url = "http://a.example"\n', "http.public_url: must be an address"),
        ('[database]\nurl = "mysql://x/y"\n', 'database.url: must be "sqlite:///FILE" or "postgresql:'),
        ('[database]\nurl = "sqlite://"\n', "what is accepted must survive"),
        ("[delivery]\nretry_after_s = []\n", "at least one waiting time"),
        ('[delivery]\nretry_after_s = ["1"]\n', "delivery.retry_after_s: must be a whole number from 1"),
        ("[delivery]\nattempt_timeout_s = 5\n", "must be longer than final_dot_timeout_s"),
        ('[tls]\ncertificate = "a.pem"\n', "tls.private_key: is missing"),
        ("[route]\n", "route: must be a list of tables: write [[route]]"),
        ('[[route]]\nname = "a"\n', "route.0.kind: is missing"),
        ('[[route]]\nname = "a"\nkind = "smtp"\n', "route.0.host: is missing: route 'a' of kind \"smtp\""),
        (ROUTE + ROUTE, "2 routes are called 'up'"),
        (ROUTE + 'username = "me"\n', "password (or password_file): is missing"),
        (ROUTE + 'username = "me"\npassword = "x"\ntls = "none"\n', "would send the password of route 'up' in clear"),
        (ROUTE + 'username = "me"\npassword_file = "/none"\n', "route.0.password_file: /none cannot be read"),
        ('[[sender]]\naddress = "a@b.c"\nroute = "x"\n', "sender.0.route: there is no route 'x'; there are: none"),
        (
            ROUTE + '[[sender]]\naddress = "ab"\nroute = "up"\n',
            'sender.0.address: must be an address such as "noreply@example.com" (An email',
        ),
        (ROUTE + '[[sender]]\naddress = "a@b.c"\nroute = "up"\n' * 2, "a@b.c is there twice"),
        ("[plans.x]\ncalls = 1\n", "plans.x.calls: there is no such key"),
        ('[plans."a b"]\n', "a plan's name must be"),
        ("[plans]\nx = 1\n", "plans.x: must be a table: write [plans.x] before its keys"),
        ("route = [1]\n", "route.0: must be a table: write [[route]] before its keys"),
        ("[smtp\n", "test.toml: is not TOML"),
        (f"[limits]\nbacklog = {'9' * 5000}\n", "test.toml: has a number that is far too long"),
        (f"[limits]\nbacklog = {'9' * 400}\n", "limits.backlog: must be a whole number of at least 1, not a number so"),
        (f"[limits]\nbacklog = 0x{'f' * 5000}\n", "limits.backlog: must be a whole number of at least 1"),
        (f"[limits]\nidle_timeout_s = {'9' * 400}\n", "limits.idle_timeout_s: must be a number from 1 to 86400"),
    ],
)
def test_a_mistake_names_file_key_and_what_is_allowed(text: str, said: str) -> None:
    found = problems(text)
    assert any(said in line for line in found), found
    assert all(line.startswith("test.toml: ") for line in found)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[[route]]\nname = "up"\nkind = "smtp"\nhost = "a:25"\n', "route.0.host"),
        ('[[route]]\nname = "up"\nkind = "lmtp"\n[[sender]]\naddress = "a@b.c"\nroute = "up"\n', "route.0.kind"),
    ],
)
def test_a_mistake_is_told_once(text: str, key: str) -> None:
    """What is missing on its account is there for whoever wrote it."""
    (found,) = problems(text)
    assert found.startswith(f"test.toml: {key}: must be")


def test_a_mark_at_the_beginning_of_the_file_is_none_of_its_words(tmp_path: Path) -> None:
    file = tmp_path / "hepmaild.toml"
    file.write_text('[server]\nhostname = "a.example"\n', encoding="utf-8-sig")
    assert load(file, {}).server.hostname == "a.example"


@pytest.mark.parametrize("spelling", ["info@bücher.example", "info@BÜCHER.example", "info@XN--BCHER-KVA.example"])
def test_a_sender_is_known_by_every_spelling_of_its_domain(spelling: str) -> None:
    """RFC 5891 §4.4: A-labels, as in what comes by either door."""
    settings = read(f'{ROUTE}[[sender]]\naddress = "{spelling}"\nroute = "up"\n')
    assert settings.sender[0].address == "info@xn--bcher-kva.example"
    row = pick_sender(make_book([], settings_senders(settings.sender)), (check_address("info@bücher.example"),), None)
    assert isinstance(row, SenderRow)
    assert row.route == "up"


def test_two_spellings_of_one_sender_are_a_mistake() -> None:
    rows = "".join(
        f'[[sender]]\naddress = "{a}"\nroute = "up"\n' for a in ("a@bücher.example", "a@xn--bcher-kva.example")
    )
    assert "a@xn--bcher-kva.example is there twice" in problems(ROUTE + rows)[0]


def test_two_defaults_are_a_mistake() -> None:
    rows = "".join(f'[[sender]]\naddress = "{n}@b.c"\nroute = "up"\ndefault = true\n' for n in "xy")
    assert problems(ROUTE + rows) == ["test.toml: sender: at most one may be the default; x@b.c, y@b.c all are"]


def test_all_mistakes_are_told_at_once() -> None:
    assert (
        len(problems('[server]\nhostname = 3\nstat = ""\n[smtp]\nreply = ""\n[nope]\n[plans.free]\nlog_days = 0\n'))
        == 5
    )


def test_a_secret_is_never_in_a_mistake() -> None:
    assert "hunter2" not in str(problems(ROUTE + 'username = "me"\npassword = ["hunter2"]\n'))
    assert "hunter2" not in str(problems('[database]\nurl = "mysql://me:hunter2@host/x"\n'))
    shown = config_docs.effective(
        read(ROUTE + 'username = "me"\npassword = "hunter2"\n[database]\nurl = "postgresql://me:hunter2@h/x"\n')
    )
    assert "hunter2" not in str(shown)
    assert shown["database"]["url"] == "postgresql://me:…@h/x"
    shown = config_docs.effective(read('[database]\nurl = "postgresql://me@h/x?password=hunter2&sslmode=require"\n'))
    assert shown["database"]["url"] == "postgresql://me@h/x?password=…&sslmode=require"


def test_the_environment_wins_and_takes_the_type_of_the_key() -> None:
    settings = read(
        ROUTE + "[smtp]\nreplay_window_s = 5\n",
        HEPMAILD_SMTP__REPLAY_WINDOW_S="7",
        HEPMAILD_SMTP__STARTTLS="127.0.0.1:25,[::1]:0",
        HEPMAILD_SMTP__TRACE_CLIENT_ADDRESS="true",
        HEPMAILD_DELIVERY__RETRY_AFTER_S="[1, 2]",
        HEPMAILD_ROUTE__UP__USERNAME="me",
        HEPMAILD_ROUTE__0__PASSWORD="secret",
        HEPMAILD_PLANS__FREE__LOG_DAYS="9",
        HEPMAILD_CONFIG="ignored",
        HEPMAILD_TEST_POSTGRES="ignored",
    )
    assert settings.smtp.replay_window_s == 7
    assert settings.smtp.starttls == ("127.0.0.1:25", "[::1]:0")
    assert settings.smtp.trace_client_address is True
    assert settings.delivery.retry_after_s == (1, 2)
    assert (settings.route[0].username, settings.route[0].password) == ("me", "secret")
    assert settings.plans["free"] == config.Plan(
        calls_per_minute=5, messages_per_day=100, log_days=9, api_keys=15, smtp_servers=1
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HEPMAILD_SMTP__REPLAY_WINDOW_S", "x", "HEPMAILD_SMTP__REPLAY_WINDOW_S: smtp.replay_window_s: must be"),
        ("HEPMAILD_SMPT__REPLY", "x", "HEPMAILD_SMPT__REPLY: smpt: there is no such section; did you mean smtp?"),
        ("HEPMAILD_ROUTE__OTHER__HOST", "x", "HEPMAILD_ROUTE__OTHER__HOST: names nothing in the settings"),
        ("HEPMAILD_SENDER__ADDRESS", "a@b.c", "ADDRESS: does not say which [[sender]] it means, by its number"),
        ("HEPMAILD_ROUTE__PASSWORD", "x", "by its number, or the name of a route: HEPMAILD_ROUTE__0__<KEY>"),
        ("HEPMAILD_ROUTE__0", "x", "HEPMAILD_ROUTE__0: does not say which [[route]] it means"),
        (f"HEPMAILD_ROUTE__{'9' * 5000}__HOST", "x", "names nothing in the settings"),
        ("HEPMAILD_LIMITS__BACKLOG", "9" * 5000, "limits.backlog: must be a whole number of at least 1"),
        ("HEPMAILD_SERVER__HOSTNAME__X", "x", "server.hostname: must be a string"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(name: str, value: str, said: str) -> None:
    assert any(said in line for line in problems("", **{name: value}))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HEPMAILD_SERVER_HOSTNAME", "HEPMAILD_SERVER__HOSTNAME"),
        ("HEPMAILD_OWN_SMTP_TLS_CA", "HEPMAILD_OWN_SMTP__TLS_CA"),
        ("HEPMAILD_DATABASE_URL_FILE", "HEPMAILD_DATABASE__URL_FILE"),
        ("HEPMAILD_ROUTE_UP_PASSWORD", "HEPMAILD_ROUTE__UP__PASSWORD"),
        ("HEPMAILD_ROUTE_0_MESSAGES_PER_CONNECTION", "HEPMAILD_ROUTE__0__MESSAGES_PER_CONNECTION"),
        ("HEPMAILD_SENDER_DAILY_CAP", "HEPMAILD_SENDER__0__DAILY_CAP"),
        ("HEPMAILD_PLANS_FREE_LOG_DAYS", "HEPMAILD_PLANS__FREE__LOG_DAYS"),
    ],
)
def test_one_underscore_is_not_two(name: str, meant: str) -> None:
    [said] = problems("", **{name: "hunter2"})
    assert said == f"{name}: is no setting: two underscores stand before its key; write {meant}"


def test_variables_of_others_may_begin_as_ours() -> None:
    """The tests' own; and what Kubernetes sets for services that are called hepmaild and hepmaild-smtp."""
    others = "CONFIG TEST_POSTGRES KILLS OUTAGE_S PORT SERVICE_HOST PORT_587_TCP SMTP_PORT SMTP_SERVICE_HOST".split()  # noqa: SIM905
    assert read("", **{f"HEPMAILD_{name}": "x" for name in others}) == config.Settings()


@pytest.mark.parametrize("second", ["up.1", "UP_1"])
def test_a_variable_that_means_two_routes_is_refused(second: str) -> None:
    """It set the first one's password, and the second had none, or another one's."""
    text = ROUTE.replace('"up"', '"up-1"') + ROUTE.replace('"up"', f'"{second}"')
    [said] = problems(text, HEPMAILD_ROUTE__UP_1__TLS="none")
    assert said.startswith(f"HEPMAILD_ROUTE__UP_1__TLS: means the routes 'up-1' and '{second}' alike: write the number")
    settings = read(text, HEPMAILD_ROUTE__1__TLS="none")
    assert [route.tls for route in settings.route] == [config.TlsMode.STARTTLS, config.TlsMode.NONE]
    plans = '[plans."a-b"]\nlog_days = 1\n[plans."a.b"]\nlog_days = 1\n'
    assert "means 'a-b' and 'a.b' alike" in problems(plans, HEPMAILD_PLANS__A_B__LOG_DAYS="2")[0]


def test_secrets_come_from_files_and_credentials(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("from-file\n")
    text = ROUTE + 'username = "me"\n'
    assert read(text + 'password_file = "pw"\n', tmp_path).route[0].password == "from-file"
    (tmp_path / "route.up.password").write_text("from-systemd")
    (tmp_path / "database.url").write_text("postgresql://a:b@c/d\n")
    settings = read(text, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert settings.route[0].password == "from-systemd"
    assert settings.database.url == "postgresql://a:b@c/d"
    (tmp_path / "two").write_text("a\nb\n")
    assert "in one line" in problems(text + 'password_file = "two"\n', tmp_path)[0]


def test_a_credential_wins_then_the_environment_then_the_file(tmp_path: Path) -> None:
    """What stands before it keeps `password_file` unread: it may be one for root's eyes only."""
    named = ROUTE + 'username = "me"\npassword_file = "/none"\n'
    plain = ROUTE + 'username = "me"\npassword = "plain"\n[database]\nurl = "sqlite:///x.db"\n'
    variable = {"HEPMAILD_ROUTE__UP__PASSWORD": "from-variable"}
    assert read(named, **variable).route[0].password == "from-variable"
    assert read(plain, **variable).route[0].password == "from-variable"
    (tmp_path / "pw").write_text("from-file")
    other_file = {"HEPMAILD_ROUTE__UP__PASSWORD_FILE": str(tmp_path / "pw")}
    assert read(plain, **other_file).route[0].password == "from-file"
    assert read(named, **other_file).route[0].password == "from-file"
    assert read(plain, **other_file, **variable).route[0].password == "from-variable"
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    here = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert read(plain, **here).route[0].password == "plain"
    (credentials / "route.up.password").write_text("from-systemd")
    (credentials / "database.url").write_text("sqlite:///y.db")
    for text in (named, plain):
        assert read(text, **here, **variable).route[0].password == "from-systemd"
    assert read(plain, **here).database.url == "sqlite:///y.db"
    said = problems(plain.replace("[database]", 'password_file = "/none"\n[database]'), **here)
    assert said == ["test.toml: route.0.password_file: stands beside password: give one of them"]


def test_a_secret_that_cannot_be_read_is_one_mistake_and_says_the_way(tmp_path: Path) -> None:
    file = tmp_path / "pw"
    file.write_text("secret")
    file.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65_534)
        (said,) = problems(ROUTE + f'username = "me"\npassword_file = "{file}"\n')
    finally:
        os.seteuid(user)
    assert f"{file} cannot be read: Permission denied" in said
    assert "the credential route.up.password (LoadCredential=" in said
    assert problems(ROUTE + 'username = "me"\npassword_file = 3\n') == [
        "test.toml: route.0.password_file: must be the name of a file"
    ]


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("HTTPS://Mail.Example.com/", "https://mail.example.com"),
        ("https://mail.example.com:443", "https://mail.example.com"),
        ("https://mail.example.com:8443/", "https://mail.example.com:8443"),
        ("https://post.bücher.example", "https://post.xn--bcher-kva.example"),
        ("https://[::1]:443", "https://[::1]"),
        ("", ""),
    ],
)
def test_the_public_address_is_what_browsers_call_it(written: str, taken: str) -> None:
    """They send it as the origin of a form, and behind a proxy that asks us by another name nothing else is ours."""
    assert read(f'[http]\npublic_url = "{written}"\n').http.public_url == taken


@pytest.mark.parametrize("url", ["https://a b", "https://<script>", "https://a;b", "https://a..b", "https://:443"])
def test_a_public_address_is_a_host(url: str) -> None:
    (said,) = problems(f'[http]\npublic_url = "{url}"\n')
    assert 'must be an address such as "https://mail.example.com", or empty' in said


def test_a_pipe_without_a_writer_is_an_empty_secret(tmp_path: Path) -> None:
    """It was waited for: at a reload by the whole daemon, which no signal ended then."""
    os.mkfifo(tmp_path / "pw")
    (said,) = problems(ROUTE + 'username = "me"\npassword_file = "pw"\n', tmp_path)
    assert said.endswith("pw must hold the secret in one line and nothing else")


def test_a_secret_is_judged_wherever_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "database.url"
    for url in ("mysql://me:hunter2@host/x", "sqlite:///:memory:", "nonsense"):
        file.write_text(f"{url}\n")
        for said in (
            problems(f'[database]\nurl_file = "{file}"\n'),
            problems("", HEPMAILD_DATABASE__URL_FILE=str(file)),
            problems("", CREDENTIALS_DIRECTORY=str(tmp_path)),
        ):
            assert len(said) == 1
            assert f'{file} must hold "sqlite:///FILE" or "postgresql://' in said[0]
            assert "hunter2" not in said[0]
    (tmp_path / "pw").write_text("a\0b\n")
    (said,) = problems(ROUTE + f'username = "me"\npassword_file = "{tmp_path}/pw"\n')
    assert "must hold text without control characters" in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql:h/x", 'must be "sqlite:///FILE" or'),
        ("POSTGRESQL://h/x", 'must be "sqlite:///FILE" or'),
        (
            "postgresql://h/x?sslmode=sometimes",
            "one of disable, allow, prefer, require, verify-ca, verify-full as its ssl",
        ),
        ("postgresql://h/x?connect_timeout=5", "no options but sslmode,"),
        ("postgresql://h/x?sslmode=require&sslmode=disable", "each once"),
        ("postgresql:///x?port=big", "65535 as its port"),
        ("postgresql://u@a..b/x", 'must be "sqlite:///FILE" or'),
        (f"postgresql://u@{'a' * 64}.example/x", 'must be "sqlite:///FILE" or'),
        ("postgresql://u@h:0/x", 'must be "sqlite:///FILE" or'),
        ("postgresql://u@/x?host=a:1,b:2", "one host, or the folder of a socket, as its host"),
        ("postgresql://u@/x?host=a..b", "one host, or the folder of a socket, as its host"),
        ("postgresql://u:p@ss@h/x", 'in its password "/" is written %2F, "@" %40,'),
        ("postgresql://u:p/ss@h/x", 'in its password "/" is written %2F,'),
        ("sqlite:///a%00b", 'must be "sqlite:///FILE" or'),
    ],
)
def test_a_database_that_cannot_be_opened_is_a_mistake(url: str, said: str) -> None:
    (found,) = problems(f'[database]\nurl = "{url}"\n')
    assert said in found


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///x?host=/run/postgresql&port=5433",
        "postgresql://u@h/x?sslmode=verify-full",
        "postgresql://u@[::1]:5433/x",
        "postgresql://u@bücher.example/x",
        "postgresql:///x?host=::1",
    ],
)
def test_a_database_may_be_named_by_options(url: str) -> None:
    assert read(f'[database]\nurl = "{url}"\n').database.url == url


def test_a_new_plan_inherits_from_standard() -> None:
    plans = read("[plans.standard]\nlog_days = 60\n[plans.tiny]\ncalls_per_minute = 1\n").plans
    assert plans["tiny"] == config.Plan(calls_per_minute=1, log_days=60)
    assert plans["pro"] == config.SHIPPED_PLANS["pro"]


def test_relative_paths_start_at_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "hepmaild.toml"
    text = '[server]\nstate_dir = "var"\n[tls]\ncertificate = "c.pem"\nprivate_key = "/k.pem"\n'
    text += '[own_smtp]\ntls_ca = "o.pem"\n'
    own = ROUTE.replace("up", "own") + 'tls_ca = "/r.pem"\n'
    login = 'username = "me"\npassword_file = "pw"\n'
    file.write_text(text + ROUTE + 'tls_ca = "r.pem"\n' + login + own)
    (tmp_path / "pw").write_text("secret")
    settings = load(file, {})
    assert settings.server.state_dir == tmp_path / "var"
    assert settings.tls == config.TlsSettings(str(tmp_path / "c.pem"), "/k.pem")
    assert settings.own_smtp.tls_ca == str(tmp_path / "o.pem")
    assert [route.tls_ca for route in settings.route] == [str(tmp_path / "r.pem"), "/r.pem"]
    assert settings.route[0].password == "secret"


def test_a_file_that_is_gone_at_a_reload_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -c it was looked for, and not found means the defaults: no route, no sender."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEPMAILD_CONFIG", raising=False)
    file = tmp_path / "hepmaild.toml"
    file.write_text('[server]\nhostname = "smtp.example.com"\n')
    invocation = Invocation()
    assert invocation.settings.server.hostname == "smtp.example.com"
    file.unlink()
    with pytest.raises(SettingsError, match=r"hepmaild\.toml: cannot be read: No such file"):
        invocation.load()
    file.write_text('[server]\nhostname = "other.example.com"\n')
    assert invocation.load().server.hostname == "other.example.com"


def test_settings_from_a_pipe_are_not_read_again() -> None:
    """It is empty the second time, and nothing means the defaults: no route, no sender."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as pipe:
        pipe.write('[server]\nhostname = "smtp.example.com"\n')
        pipe.close()
        invocation = Invocation(f"/dev/fd/{reading}")
        assert invocation.settings.server.hostname == "smtp.example.com"
        with pytest.raises(SettingsError, match=rf"/dev/fd/{reading}: is a pipe or the like, which cannot be read"):
            invocation.load()


@pytest.mark.parametrize("text", ["x = " + "[" * 5000 + "]" * 5000, "x = " + "{a=" * 5000 + "1" + "}" * 5000])
def test_a_file_that_is_nested_too_deeply_is_a_mistake(text: str) -> None:
    """Not the end of a daemon that reads it again."""
    assert problems(text) == ["test.toml: is nested far too deeply: no setting is"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:25", "127.0.0.1:25"),
        ("*:25", "[::]:25"),
        ("[::]:25", "127.0.0.1:25"),
        ("localhost:25", ":25"),
        ("[::1]:25", "[::]:25"),
        ("0.0.0.0:25", "127.0.0.1:25"),
        ("0.0.0.0:25", "[::]:25"),
    ],
)
def test_doors_cannot_share_an_address(one: str, other: str) -> None:
    for table in ("metrics", "http"):
        text = f'[smtp]\nstarttls = ["{one}"]\nimplicit_tls = []\n[{table}]\nlisten = ["{other}"]\n'
        assert f"test.toml: {table}.listen: {other} is taken by smtp.starttls already" in problems(text)


def test_doors_may_share_a_port() -> None:
    addresses = '["127.0.0.1:25", "127.0.0.2:25", "[::1]:25", "127.0.0.1:0", "127.0.0.1:0", "0.0.0.0:26", "[::1]:26"]'
    assert read(f"[smtp]\nstarttls = {addresses}\n").smtp.starttls[0] == "127.0.0.1:25"


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "a,b"])
def test_a_door_has_a_host(host: str) -> None:
    (said,) = problems(f'[metrics]\nlisten = ["{host}:25"]\n')
    assert 'must be "host:port" with a host name or an IP address' in said


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_settings_file("a.toml", {"HEPMAILD_CONFIG": "b.toml"}) == Path("a.toml")
    assert find_settings_file(None, {"HEPMAILD_CONFIG": "b.toml"}) == Path("b.toml")
    (tmp_path / "hepmaild.toml").write_text("")
    assert find_settings_file(None, {}) == Path("hepmaild.toml")
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml", {})


def test_a_closed_working_directory_has_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo -u hepmaild` in root's home: what cannot be looked at is not there, and /etc is next."""
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.chdir(closed)
    closed.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # whom no mode of a folder keeps out
            os.seteuid(65_534)
        assert find_settings_file(None, {}) in (None, Path("/etc/hepmaild.toml"))
    finally:
        os.seteuid(user)
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[::1]:25", ("::1", 25)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("*:25", ("::", 25)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert config.parse_address(text) == address
    assert config.parse_address(config.format_address(*address)) == address

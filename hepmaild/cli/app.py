# SPDX-License-Identifier: Apache-2.0
"""The top command, and the boundary where every expected error becomes one line and an exit status.

0: done.  1: refused or failed.  2: wrong usage or settings.  130: interrupted.
"""

from __future__ import annotations

import contextlib

import click
import structlog

from hepmaild import __version__, logs
from hepmaild.cli import (
    accounts,
    demo,
    dkim,
    doctor,
    keys,
    queue,
    secrets,
    service,
    smtp_servers,
    suppression,
    top,
    users,
)
from hepmaild.cli.common import DAEMONS, Invocation
from hepmaild.cli.output import CommandFailed, clean
from hepmaild.config_load import SettingsError
from hepmaild.errors import SecretsUnavailable, StoreUnavailable, leaves

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-c", "--config", metavar="FILE", help="Settings; default: $HEPMAILD_CONFIG, ./hepmaild.toml, /etc/hepmaild.toml."
)
@click.option("--log-level", type=click.Choice(list(logs.LEVELS)), help="The lowest level to log (standard error).")
@click.version_option(__version__, prog_name="hepmaild")
@click.pass_context
def cli(ctx: click.Context, config: str | None, log_level: str | None) -> None:
    """Transactional mail through two doors, SMTP submission and an HTTPS API, on one durable pipeline.

    \b
    hepmaild demo                                      try it: no settings, no mail leaves
    hepmaild -c hepmaild.toml check-config             are the settings good?
    hepmaild -c hepmaild.toml serve                    the daemon
    hepmaild account add me@example.com --credits 1000
    hepmaild key mint me@example.com --name shop

    Commands that change something work while the daemon runs, and it obeys at once.
    """
    ctx.obj = Invocation(config=config, log_level=log_level)
    quiet = "info" if ctx.invoked_subcommand in DAEMONS else "warning"
    logs.configure(level=log_level or quiet)


for command in (
    service.serve,
    demo.demo,
    service.check_config,
    doctor.doctor,
    service.db,
    accounts.account,
    accounts.credits,
    users.user,
    users.audit,
    keys.key,
    keys.sender,
    service.route,
    smtp_servers.smtp_server,
    dkim.dkim,
    secrets.secrets,
    queue.queue,
    queue.log,
    suppression.suppression,
    service.completion,
):
    cli.add_command(command)


queue.queue.add_command(top.queue_top)

_EXPECTED = (
    click.ClickException,
    click.Abort,
    KeyboardInterrupt,
    SettingsError,
    CommandFailed,
    SecretsUnavailable,
    StoreUnavailable,
    OSError,
    BaseExceptionGroup,
)


def run(arguments: list[str]) -> int:
    """Run one command; the exit status.  A bug comes out as the exception it is, for `log_crash`."""
    try:
        status = cli.main(arguments, prog_name="hepmaild", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return WRONG_USAGE
    except _EXPECTED as error:
        problem = _explain(error)
        if problem is None:
            raise
        status, lines = problem
        notes = getattr(error, "__notes__", []) if status == FAILED else []
        for line in lines:
            _say("; ".join([line, *notes]))
    return status if isinstance(status, int) else OK


def _explain(error: BaseException) -> tuple[int, list[str]] | None:
    """Exit status and lines for an error that is nobody's bug; None for a bug."""
    match error:
        case BaseExceptionGroup():
            return _explain_group(error)
        case click.ClickException():
            return _explain_usage(error)
        case SettingsError():
            return WRONG_USAGE, [str(problem) for problem in error.problems]
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED, []
        case OSError():
            return FAILED, [_describe(error)]
        case CommandFailed() | SecretsUnavailable() | StoreUnavailable():
            return FAILED, [str(error)]
    return None


def _explain_group(group: BaseExceptionGroup[BaseException]) -> tuple[int, list[str]] | None:
    """Trio's nurseries wrap what their tasks raise; one bug among the errors makes it a bug."""
    found = [_explain(inner) for inner in leaves(group)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return max(status for status, _ in known), list(dict.fromkeys(line for _, lines in known for line in lines))


def _explain_usage(error: click.ClickException) -> tuple[int, list[str]]:
    line = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    if ctx is not None:
        line += f" (try `{ctx.command_path} --help`)"
    return WRONG_USAGE if isinstance(error, click.UsageError) else FAILED, [line]


def _describe(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"hepmaild: {logs.redact(clean(line))}", err=True)


def log_crash(_kind: type[BaseException], error: BaseException, _traceback: object) -> None:
    """A bug: one line in the log with the whole story, and no traceback over the terminal."""
    structlog.get_logger().error("crashed", exc_info=error)

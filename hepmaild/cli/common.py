# SPDX-License-Identifier: Apache-2.0
"""What commands share: the settings, `--json`, argument types."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click

from hepmaild.cli.output import CommandFailed, print_hint
from hepmaild.config import Settings
from hepmaild.mail.address import check_address
from hepmaild.mail.ids import is_message_id

F = TypeVar("F", bound=Callable[..., Any])
DAEMONS = frozenset({"serve", "demo"})
NO_TEXT = "not text in the encoding of this terminal (LC_ALL, LANG)"


@dataclasses.dataclass
class Invocation:
    """What the options of the top command said.  settings are read when a command first asks.

    preset: settings that do not come from a file (the demo's), or what was read.
    has_changed: the command's change is durable; what fails from then on only fails to say so.
    is_default: nobody chose the settings, by a file or in the environment.
    """

    config: str | None = None
    log_level: str | None = None
    preset: Settings | None = None
    has_changed: bool = False
    is_default: bool = False

    def load(self) -> Settings:
        """Read the settings anew.  Raises SettingsError.

        The file that was found first is looked for from then on: should it be gone at a reload, defaults and whatever
        else lies about are no settings that anybody meant.  Nor is what is left of a pipe that was read before.
        """
        from hepmaild.config_load import SettingsError, find_settings_file, load
        from hepmaild.config_read import Problem

        file = find_settings_file(self.config, os.environ)
        if self.preset is not None and file is not None and _is_used_up(file):
            text = "is a pipe or the like, which cannot be read again: a restart takes other settings"
            raise SettingsError((Problem(str(file), "", text),))
        settings = load(file, os.environ)
        self.config = self.config if file is None else str(file)
        self.is_default = file is None and not any(n.startswith("HEPMAILD_") and "__" in n for n in os.environ)
        return settings

    @property
    def settings(self) -> Settings:
        """The settings.  Raises SettingsError, which ends the command with exit status 2."""
        if self.preset is None:
            self.preset = self.load()
        return self.preset


def _is_used_up(file: Path) -> bool:
    """Whether this is there, and no file.  Path's own questions raise where a folder is closed to us."""
    return os.path.exists(file) and not os.path.isfile(file)  # noqa: PTH110, PTH113


def with_settings(fn: F) -> F:
    """Give a command the settings as its first argument."""

    @click.pass_context
    @functools.wraps(fn)
    def run(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        _check_text(ctx)
        invocation: Invocation = ctx.find_object(Invocation)  # type: ignore[assignment]  # set by the top command
        settings, is_daemon = invocation.settings, ctx.info_name in DAEMONS
        try:
            with _DefaultsTold(settings) if invocation.is_default and not is_daemon else nullcontext():
                return fn(settings, *args, **kwargs)
        except OSError as error:
            if not invocation.has_changed:
                raise
            raise CommandFailed(f"done, but it could not be printed: {error.strerror or error}") from None
        except _symptoms() as error:
            if not is_daemon:
                _tell_of_damage(settings, error)
            raise

    return run  # type: ignore[return-value]  # a decorator of click's


class _DefaultsTold:
    """Says behind a command whose database it was about: one that was meant for another's finds an empty one.

    Where it fails, that is a note of the error: a reason is one line.
    """

    def __init__(self, settings: Settings) -> None:
        from hepmaild.config_load import DEFAULT_FILES

        sought, place = ", ".join(map(str, DEFAULT_FILES)), settings.server.state_dir
        self._hint = f"there is no settings file ({sought}): this is about {place}; -c FILE names another"

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            print_hint(f"hepmaild: {self._hint}")
        else:
            error.add_note(self._hint)


def _symptoms() -> tuple[type[Exception], ...]:
    """What a damaged value of the database leads to; nothing, in a command that has not opened one."""
    if "hepmaild.storage.store" not in sys.modules:
        return ()
    from hepmaild.storage import damage

    return (*damage.SYMPTOMS, ExceptionGroup)


def _tell_of_damage(settings: Settings, error: Exception) -> None:
    """Raises CommandFailed when the error comes from the database and from no bug of ours."""
    from hepmaild.cli import backend

    said = backend.damage_behind(settings, error)
    if said is not None:
        todo = "put a copy from before in its place (`hepmaild db backup` makes them), or mend this value by hand"
        raise CommandFailed(f"the database is damaged: {said}; {todo}") from None


def mark_changed() -> None:
    """Say that what the running command does is durable."""
    ctx = click.get_current_context(silent=True)
    invocation = None if ctx is None else ctx.find_object(Invocation)
    if invocation is not None:
        invocation.has_changed = True


def _check_text(ctx: click.Context) -> None:
    """Raises click.BadParameter for octets of the command line that are no text: no database keeps them.

    The name of a file may have them; it is a Path here.
    """
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        for word in value if isinstance(value, tuple) else (value,):
            if isinstance(word, str) and is_broken(word):
                raise click.BadParameter(f"this is {NO_TEXT}", ctx, param)


class NumberRange(click.FloatRange):
    """As click's, without "nan": no limit holds for it, and no time can be made of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number in the range {self._describe_range()}.", param, ctx)
        return number


def read_line(limit: int) -> str:
    """The first line of standard input; what is longer than `limit` characters stays so, but may be cut.

    Raises CommandFailed when it is no text: nobody could type such a password again.
    """
    line = sys.stdin.readline(limit + 2).rstrip("\r\n")
    if is_broken(line):
        raise CommandFailed(f"standard input is {NO_TEXT}")
    return line


def is_broken(text: str) -> bool:
    """Whether it holds octets that were no character."""
    return any("\ud800" <= ch <= "\udfff" for ch in text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


class _Email(click.ParamType[str]):
    name = "email"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_address(value)
        except ValueError as error:
            self.fail(f"{value!r} is not an email address: {error}", param, ctx)


class _MessageId(click.ParamType[str]):
    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_message_id(value.lower()):
            self.fail(f"{value!r} is not a messageId: it has 16 hexadecimal characters", param, ctx)
        return value.lower()


class _Plan(click.ParamType[str]):
    name = "plan"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ctx is not None:
            plans = ctx.find_object(Invocation).settings.plans  # type: ignore[union-attr]  # set by the top command
            if value not in plans:
                self.fail(f"there is no plan {value!r}; there are {', '.join(sorted(plans))}", param, ctx)
        return value


EMAIL = _Email()
MESSAGE_ID = _MessageId()
PLAN = _Plan()

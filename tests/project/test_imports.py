# SPDX-License-Identifier: Apache-2.0
"""The shape of the source: who may import whom, what every file begins with, how long things may be.

The levels are those of docs/architecture.md.  A module imports from its own level and below; pure modules (0 and 1)
touch neither clock nor network; the doors and the delivery engine never see one another.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hepmaild"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
ALL_FILES = [
    *FILES,
    *(path for folder in ("tests", "bench", "tools") for path in sorted((ROOT / folder).rglob("*.py"))),
]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
# The daemon's parts, one after the other in the order of their lifetimes; a migration's tables.
LONG_FUNCTIONS = {"hepmaild/daemon.py": 90, "hepmaild/storage/migrations": 400}
# `except Exception` stands at three boundaries (a session, an HTTP handler, an attempt) and where a library's task is
# supervised; each gives the caller an answer.  A new one needs a reason here.
BLIND_EXCEPTS = {
    "hepmaild.daemon": 1,  # the HTTP server is a library's: it is started again
    "hepmaild.delivery.attempt": 2,  # the attempt; and the report of its crash, should that crash too
    "hepmaild.doctor.checks": 1,  # a check that crashes must not hide the others
    "hepmaild.http.app": 2,  # the handler, of requests and of websockets
    "hepmaild.http.connection": 1,  # one connection of the web server, which must not end the others
    "hepmaild.metrics_listener": 1,  # figures that cannot be shown must not end the mail
    "hepmaild.smtp.session": 1,  # the session
}

IMPURE = {"trio", "socket", "ssl", "asyncio", "time", "random", "logging", "secrets", "trio_asyncio", "structlog"}
ONLY_IN = {
    "trio_asyncio": ("hepmaild.storage.bridge",),
    "sqlalchemy": ("hepmaild.storage",),
    "alembic": ("hepmaild.storage",),
    "asyncpg": ("hepmaild.storage",),
    "quart": ("hepmaild.http",),
    "quart_trio": ("hepmaild.http",),
    "hypercorn": ("hepmaild.http",),
    "werkzeug": ("hepmaild.http",),
    "click": ("hepmaild.cli",),
    "prometheus_client": ("hepmaild.metrics_page",),
}
APART = ("hepmaild.smtp", "hepmaild.http", "hepmaild.delivery")

_SMTP_PURE = "actions commands content core facts machine replies sasl say state verbs".split()  # noqa: SIM905
_DELIVERY_PURE = "answers capabilities client dane hops job mta_sts mx outcome reader route tls_policy".split()  # noqa: SIM905
_STORAGE_USERS = [
    "callers",
    "census",
    "directory",
    "dkim_watch",
    "intake",
    "live",
    "outbox",
    "own_servers",
    "policy",
    "prepare",
    "reaper",
    "receipts",
    "sealing",
    "signing",
    "tallier",
    "twins",
]
_LOGIN = "live_pass login login_rows members people second_factor tokens".split()  # noqa: SIM905

# The first prefix that fits decides.
LEVELS: list[tuple[str, int]] = [
    ("hepmaild.__main__", 5),
    ("hepmaild.cli", 5),
    ("hepmaild.daemon", 5),
    *((f"hepmaild.smtp.{name}", 1) for name in _SMTP_PURE),
    *((f"hepmaild.delivery.{name}", 1) for name in _DELIVERY_PURE),
    ("hepmaild.smtp", 4),
    ("hepmaild.http", 4),
    ("hepmaild.delivery", 4),
    *((f"hepmaild.{name}", 4) for name in ("doctor", "metrics_listener", "metrics_page", "operations", "route_test")),
    *((f"hepmaild.{name}", 3) for name in (*_STORAGE_USERS, *_LOGIN)),
    ("hepmaild.materials", 3),
    ("hepmaild.uploads", 3),
    ("hepmaild.storage", 2),
    ("hepmaild.dkim_keys", 2),
    ("hepmaild.vault", 2),
    *(
        (f"hepmaild.{name}", 2)
        for name in (
            "lifecycle",
            "listening",
            "logs",
            "metrics",
            "metrics_docs",
            "passwords",
            "private_files",
            "sdnotify",
            "seldom",
            "signals",
            "threads",
            "timers",
            "tls",
            "tlsstream",
            "transport",
        )
    ),
    *(
        (f"hepmaild.{name}", 1)
        for name in (
            "audit_words",
            "config_check",
            "config_docs",
            "config_load",
            "config_read",
            "config_reload",
            "key_rules",
            "memory",
            "server_rules",
            "template_rules",
            "totp",
        )
    ),
    ("hepmaild.search_words", 1),
    *((f"hepmaild.{name}", 0) for name in ("config", "counted", "errors", "events", "mail", "masking", "own_routes")),
    ("hepmaild", 0),
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level_of(module: str) -> int:
    for prefix, level in LEVELS:
        if module == prefix or module.startswith(prefix + "."):
            if prefix == "hepmaild" and module != "hepmaild":
                break
            return level
    pytest.fail(f"{module} has no level: add it to LEVELS in {Path(__file__).name}")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether only type checkers see it."""
    tree = ast.parse(path.read_text())
    for_types: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module, node in for_types
            yield from (
                (f"{node.module}.{alias.name}", node in for_types)
                for alias in node.names
                if (PACKAGE.parent / Path(*node.module.split("."), f"{alias.name}.py")).exists()
                or (PACKAGE.parent / Path(*node.module.split("."), alias.name, "__init__.py")).exists()
            )


def area_of(module: str) -> str | None:
    return next((area for area in APART if module == area or module.startswith(area + ".")), None)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down(path: Path) -> None:
    module = module_of(path)
    level = level_of(module)
    for imported, for_types in imports_of(path):
        if imported.split(".")[0] != "hepmaild" or imported == "hepmaild" or for_types:
            continue
        if imported in APART or imported in {"hepmaild.cli", "hepmaild.storage", "hepmaild.mail"}:
            continue  # the package itself is empty; its modules count
        assert level_of(imported) <= level, f"{module} (level {level}) imports {imported} ({level_of(imported)})"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_doors_and_the_engine_stay_apart(path: Path) -> None:
    area = area_of(module_of(path))
    for imported, _for_types in imports_of(path):
        other = area_of(imported)
        assert area is None or other is None or other == area, f"{module_of(path)} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_pure_modules_touch_no_clock_and_no_network(path: Path) -> None:
    module = module_of(path)
    if level_of(module) > 1 or path.name == "__init__.py":
        return
    found = {imported.split(".")[0] for imported, for_types in imports_of(path) if not for_types} & IMPURE
    assert not found, f"{module} imports {found}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_libraries_stay_in_their_place(path: Path) -> None:
    module = module_of(path)
    for imported, for_types in imports_of(path):
        places = ONLY_IN.get(imported.split(".")[0])
        if places is not None and not for_types:
            assert module.startswith(places), f"{module} imports {imported}"


def test_blind_excepts_stand_at_the_boundaries_only() -> None:
    found: dict[str, int] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and not _reraises(node):
                caught = "BaseException" if node.type is None else ast.unparse(node.type)
                if caught in {"Exception", "BaseException"}:
                    found[module_of(path)] = found.get(module_of(path), 0) + 1
    too_many = {module: n for module, n in found.items() if n > BLIND_EXCEPTS.get(module, 0)}
    assert not too_many, f"`except Exception` outside the boundaries: {too_many}"


def _reraises(handler: ast.ExceptHandler) -> bool:
    """Cleaning up and passing on what came is no boundary."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@pytest.mark.parametrize("path", ALL_FILES, ids=name)
def test_every_file_has_its_licence_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    tree = ast.parse(text)
    if tree.body:
        assert ast.get_docstring(tree), "a module begins with its docstring"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    most = next((n for start, n in LONG_FUNCTIONS.items() if name(path).startswith(start)), MAX_FUNCTION_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < most, f"{node.name} is too long"


def test_no_module_keeps_a_singleton() -> None:
    """Nothing that lives is made at import: no open nursery, engine, store or event at module level."""
    makers = {"Event", "Lock", "CapacityLimiter", "open_nursery", "create_engine", "Store", "Lifecycle", "Thread"}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func).split(".")[-1]
                assert called not in makers, f"{name(path)}: {ast.unparse(node)}"


def test_the_command_line_does_not_load_the_daemon() -> None:
    """`hepmaild --help` and completion stay quick: no web framework, no database driver at import."""
    import subprocess

    code = "import sys, hepmaild.cli.app; print([m for m in ('quart', 'sqlalchemy', 'hypercorn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

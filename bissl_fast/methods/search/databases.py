"""Databases that several processes share, named by a URL; leases on parts of the work, which end with their holder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bissl_fast.errors import UserError
from bissl_fast.training.files import locked, make_folder

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

SQLITE, POSTGRESQL = "sqlite:///", "postgresql"
KINDS = "sqlite:///PATH, or postgresql://USER@HOST/NAME for many machines"

Held = Callable[[], bool]
"""Whether a lease is held, asked when its work is done."""


class Leases(Protocol):
    """Who works at what. A lease ends with its process, however that ends, so that nothing waits for the dead."""

    def take(self, name: str) -> AbstractContextManager[Held]:
        """Hold a lease within the context if nobody does; the answer says whether it is held."""


def leases_of(url: str, group: str) -> Leases:
    """The leases of those who share a database.

    Args:
        url: of the database.
        group: of leases, unlike that of all others.
    """
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        return FileLeases(path.with_name(f"{path.name}.leases") / group)
    return ServerLeases(engine(url), group)


class FileLeases:
    """Locks of the operating system, a file each.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)

    @contextmanager
    def take(self, name: str) -> Iterator[Held]:
        """As :class:`Leases`."""
        with locked(self._folder / name) as held:
            yield lambda: held


class ServerLeases:
    """PostgreSQL's advisory locks, which a session holds: its server drops them when the connection ends.

    Args:
        engine: of the database, without a pool.
        group: of leases.
    """

    def __init__(self, engine: Engine, group: str) -> None:
        self._engine, self._group = engine, group

    @contextmanager
    def take(self, name: str) -> Iterator[Held]:
        """As :class:`Leases`. Where the connection broke since, the answer is whether the lease could be had again."""
        sessions = [self._engine.connect()]
        held = self._lock(sessions[0], name)

        def still() -> bool:
            if not held:
                return False
            try:
                return self._lock(sessions[-1], name)  # a session may hold the same lock more than once
            except Exception:  # the connection is gone, and the lock with it
                sessions.append(self._engine.connect())
                return self._lock(sessions[-1], name)

        try:
            yield still
        finally:
            for session in sessions:
                with suppress(Exception):  # one that broke
                    session.invalidate()  # ends the connection, and all that its session holds
                    session.close()

    def _lock(self, session: Connection, name: str) -> bool:
        from sqlalchemy import text

        key = int.from_bytes(hashlib.sha256(f"{self._group}/{name}".encode()).digest()[:8], "big", signed=True)
        return bool(session.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar())


def engine(url: str) -> Engine:
    """Connections to a PostgreSQL server, which finds out within two minutes that a machine is gone."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(
        with_driver(url), poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=connect_arguments(url)
    )


def connect_arguments(url: str) -> dict[str, object]:
    """What a connection is opened with."""
    if url.startswith(SQLITE):
        return {"timeout": 60}  # seconds that a writer waits for another
    alive = {"idle": 30, "interval": 10, "count": 6}
    ours = {f"keepalives_{name}": value for name, value in alive.items()}
    theirs = " ".join(f"-c tcp_keepalives_{name}={value}" for name, value in alive.items())
    return {"connect_timeout": 20, "options": theirs, **ours}


def with_driver(url: str) -> str:
    """The URL with the driver that this package installs named in it."""
    kind, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}" if kind.startswith(POSTGRESQL) else url


def require_database(url: str) -> None:
    """Refuse what is no database that serves.

    Raises:
        UserError: for another kind, a missing driver or path, or a password, which the run's config.yaml would keep.
    """
    kind, separator, rest = url.partition("://")
    known = url.startswith(SQLITE) or (separator and kind in (POSTGRESQL, f"{POSTGRESQL}+psycopg"))
    if not known or rest in ("", "/"):
        raise UserError(f"--search.storage must be {KINDS}, found {hidden(url)!r}.")
    if kind == "sqlite":
        return
    if find_spec("psycopg") is None:
        raise UserError("--search.storage postgresql://… needs psycopg: pip install 'psycopg[binary]'.")
    if ":" in rest.rpartition("@")[0]:
        raise UserError(
            "--search.storage must not hold a password, which config.yaml would show: leave it to PGPASSWORD or "
            "~/.pgpass."
        )


def located_database(url: str) -> str:
    """The URL with an absolute path, where it has a path."""
    return f"{SQLITE}{Path(url.removeprefix(SQLITE)).expanduser().resolve()}" if url.startswith(SQLITE) else url


def hidden(url: str) -> str:
    """The URL without what may be a password."""
    kind, separator, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{kind}{separator}{user.partition(':')[0]}{at}{place}"

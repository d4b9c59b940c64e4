"""A PostgreSQL server of our own, in a temporary folder, reached by a socket there."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgresql() -> Iterator[str]:
    """URL of a server that runs within the context; a skip where none is installed."""
    for program in ("initdb", "postgres"):
        if shutil.which(program) is None:
            pytest.skip(f"PostgreSQL is not installed here: no {program} on the path")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # not pytest's, which is too long for a socket and closed to others
    other = _other_user()
    try:
        if other:
            os.chown(folder, other["user"], other["group"])  # type: ignore[arg-type]
        made = ["initdb", "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=folder, **other)  # type: ignore[call-overload]
        options = ["-c", "listen_addresses=", "-c", "fsync=off"]
        command = ["postgres", "-D", str(folder / "data"), "-k", str(folder), *options]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **other)  # type: ignore[call-overload]
        try:
            url = f"postgresql://tester@/postgres?host={folder}"
            _wait(url)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # ends it though somebody is connected
            server.wait()
    finally:
        shutil.rmtree(folder)


def _other_user() -> dict[str, object]:
    """Who starts it in place of root, as which it refuses to run."""
    if os.getuid() != 0:
        return {}
    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wait(url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.1)
        else:
            return

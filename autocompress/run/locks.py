"""One driver a study: locks that name their holder and do not outlive it."""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage

from autocompress.engine.store import Place
from autocompress.engine.system import is_gone
from autocompress.errors import RunError

__all__ = ["driver_lock", "is_driven", "study_lock"]

# Seconds between two signs of life of a driver, and without one until it counts as dead.
_BEAT = 10.0
_DEAD = 60.0


@contextlib.contextmanager
def driver_lock(directory: Path) -> Iterator[None]:
    """Make a run directory and hold it for one driver; raise RunError that names another holder.

    The lock belongs to the process: the system releases it however the holder ends.
    """
    (directory / "artifacts").mkdir(parents=True, exist_ok=True)
    note = directory / "driver.txt"
    lock = FileLock(directory / "driver.lock")
    try:
        lock.acquire(timeout=0.3)  # someone may be looking whether it is held
    except Timeout as error:
        holder = _read(note) or "another process"
        raise _held(str(directory), holder) from error
    try:
        with contextlib.suppress(OSError):  # a full disk; the lock holds without it
            note.write_text(f"{_me()}\n", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # someone reads it (Windows)
            note.unlink()
        lock.release()


def is_driven(directory: Path) -> str:
    """Return the driver that holds a run directory, "" if none does."""
    path = directory / "driver.lock"
    if not path.exists():
        return ""
    lock, holder = FileLock(path), _read(directory / "driver.txt")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return holder or "another process"
    except OSError:  # someone else's directory, which cannot be written
        return holder if holder and _alive(holder, 0.0) else ""
    lock.release()
    return ""


@contextlib.contextmanager
def study_lock(place: Place) -> Iterator[Callable[[], None]]:
    """Hold the study of a database for one driver; raise RunError that names another holder.

    Yields a function that raises RunError if it has been taken over since. A holder is dead when
    it gave no sign of life for a minute, one on this machine at once when its process is known to
    be gone. A journal needs no other lock than its directory's.
    """
    storage = place.storage if place.url else None
    if not isinstance(storage, RDBStorage):
        yield lambda: None
        return
    engine, token = storage.engine, secrets.token_hex(8)
    drivers = sa.Table(
        "autocompress_drivers",
        sa.MetaData(),
        sa.Column("study", sa.String(255), primary_key=True),
        sa.Column("token", sa.String(16)),
        sa.Column("holder", sa.String(255)),
        sa.Column("beat", sa.Float),
    )
    drivers.metadata.create_all(engine, checkfirst=True)
    own = (drivers.c.study == place.name) & (drivers.c.token == token)

    def now(connection: sa.Connection) -> float:
        """The database's clock, the same for all drivers."""
        if engine.dialect.name == "postgresql":
            return float(
                connection.execute(sa.text("select extract(epoch from now())")).scalar_one()
            )
        return time.time()

    def take() -> str:
        """Take the lock; return who holds it instead, or ""."""
        with engine.begin() as connection:
            found = connection.execute(
                sa.select(drivers).where(drivers.c.study == place.name)
            ).first()
            values = {"token": token, "holder": _me(), "beat": now(connection)}
            if found is None:
                connection.execute(drivers.insert().values(study=place.name, **values))
                return ""
            if _alive(found.holder, values["beat"] - found.beat):
                return str(found.holder)
            changed = connection.execute(
                drivers.update()
                .where((drivers.c.study == place.name) & (drivers.c.token == found.token))
                .values(**values)
            )
            return "" if changed.rowcount == 1 else "another driver"

    def confirm() -> None:
        with engine.begin() as connection:
            beat = drivers.update().where(own).values(beat=now(connection))
            if connection.execute(beat).rowcount == 1:
                return
        raise RunError(
            f"One driver at a time may work on a study: another has taken {place} over. The trials "
            "that it finds are not lost; go on there."
        )

    try:
        holder = take()
    except sa.exc.IntegrityError:  # both inserted
        holder = "another driver"
    if holder:
        raise _held(str(place), holder)
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(_BEAT):
            with contextlib.suppress(sa.exc.SQLAlchemyError, RunError):
                confirm()

    thread = threading.Thread(target=beats, daemon=True)
    thread.start()
    try:
        yield confirm
    finally:
        ended.set()
        thread.join(_BEAT)
        with contextlib.suppress(sa.exc.SQLAlchemyError), engine.begin() as connection:
            connection.execute(drivers.delete().where(own))


def _read(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _held(what: str, holder: str) -> RunError:
    return RunError(
        f"One driver at a time may work on a study: {what} is held by {holder}. "
        "Wait for it or stop it."
    )


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _alive(holder: str, silent: float) -> bool:
    """Tell whether a holder is alive that gave its last sign of life so many seconds ago."""
    _, pid, _, host = [*holder.split(), "", "", "", ""][:4]
    if host == socket.gethostname() and pid.isdigit() and is_gone(int(pid)):
        return False
    return silent < _DEAD

"""Where a study is kept: finished trials and notes, in a journal file or a database.

Both are Optuna's own formats, so that Optuna and its dashboard open them. Each finished trial is
written at once and whole; what fails for want of disk or connection is tried again for a while.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autocompress.errors import AutocompressError, ConfigError, RunError

__all__ = ["STUDY_NAME", "Place", "Store", "finished", "public_url", "whole_url"]

#: The study's name in a journal file, which has no other.
STUDY_NAME = "autocompress"
# A trial's attribute that tells it from all others.
_ID = "id"
# Seconds that a disk or a database may be away, and between two looks whether it is back.
_PATIENCE = 300.0
_PAUSE = 0.5


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:  # a port that is no number
        raise ConfigError(
            f"storage must be a URL such as postgresql+psycopg://user@host/database: {error}."
        ) from error


def whole_url(url: str) -> str:
    """Return a database's URL as it is understood from any folder; raise ConfigError for others."""
    found = _parsed(url)
    if not url.startswith("sqlite") or (found.database or "").startswith("file:"):
        return url
    if found.database in (None, "", ":memory:"):
        raise ConfigError(
            f"A study must outlive its process: {url} is a database in memory. Name a file, as in "
            "sqlite:////folder/study.db."
        )
    whole = found.set(database=str(Path(str(found.database)).absolute()))
    return whole.render_as_string(hide_password=False)


def public_url(url: str) -> str:
    """Return a database's URL without what is secret in it; raise ConfigError for what is none."""
    if not url:
        return ""
    found = _parsed(url)._replace(password=None)
    secret = [key for key in found.query if "password" in key or "secret" in key or "token" in key]
    return found.difference_update_query(secret).render_as_string(hide_password=False)


@dataclass(frozen=True)
class Place:
    """A study's place: the file of a run directory, or a name in the database at ``url``."""

    path: Path
    url: str = ""
    name: str = STUDY_NAME

    def __str__(self) -> str:
        return f"{public_url(self.url)} ({self.name})" if self.url else str(self.path)

    @cached_property
    def storage(self) -> BaseStorage:
        """Optuna's storage; ConfigError or RunError for a database that cannot be reached."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if not self.url:
            path = str(self.path)  # the other kind of lock is a link, which Windows may refuse
            return JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        _parsed(self.url)
        try:
            return RDBStorage(self.url, engine_kwargs={"pool_pre_ping": True})
        except ImportError as error:
            raise ConfigError(
                f"The storage {public_url(self.url)} needs a package ({error}): for PostgreSQL pip "
                "install 'autocompress[postgresql]'."
            ) from error
        except Exception as error:  # SQLAlchemy's, Optuna's, the driver's own
            raise RunError(
                f"A study's database must answer: {public_url(self.url)} does not "
                f"({_first_line(error)}). Start it, name another, or give its password as the "
                "database's client takes it (PGPASSWORD)."
            ) from error

    def open(self) -> optuna.Study | None:
        """Return the study, None where there is none yet; raise RunError for a damaged one."""
        if not self.url and not self.path.exists():
            return None
        try:
            if self.name in optuna.get_all_study_names(self.storage):
                return optuna.load_study(study_name=self.name, storage=self.storage)
            return None
        except AutocompressError:
            raise
        except Exception as error:  # Optuna asserts and indexes while it replays a file
            raise self.damaged(error) from error

    def check(self) -> None:
        """Raise RunError if a database that is to have the study has none; make nothing there."""
        if not self.url:
            return
        file = _parsed(self.url).database or ""
        gone = self.url.startswith("sqlite") and not file.startswith("file:")
        with contextlib.closing(self):
            if (gone and not Path(file).exists()) or self.open() is None:
                raise RunError(
                    f"A run's study must be in its database: {public_url(self.url)} has no "
                    f"'{self.name}'. Put the database back, or start in another directory."
                )

    def close(self) -> None:
        """Close the connections to a database; they are made again where they are needed."""
        if isinstance(storage := self.__dict__.get("storage"), RDBStorage):
            storage.remove_session()
            storage.engine.dispose()

    def damaged(self, error: Exception) -> RunError:
        """Return the error of a study that autocompress did not write."""
        why = repr(error)[:120]
        return RunError(
            f"A study must be one that autocompress wrote, undamaged: {self} ({why}). "
            "Restore it from a copy, or start in another directory."
        )


class Store:
    """The study at a place, opened or made; written by one driver at a time.

    ``confirm`` is called before each write, and raises where another driver has taken over;
    ``tell`` is told what is waited for.
    """

    def __init__(
        self,
        place: Place,
        directions: Sequence[StudyDirection],
        *,
        confirm: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda text: None,
        patience: float = _PATIENCE,
    ) -> None:
        self.place, self._confirm, self._tell, self._patience = place, confirm, tell, patience
        if not place.url:
            _mend(place.path)
        found = place.open()
        if found is None and not place.url and place.path.exists() and place.path.stat().st_size:
            raise place.damaged(ValueError("no study is in it"))
        self._study = found or optuna.create_study(
            study_name=place.name, storage=place.storage, directions=directions
        )
        self._notes = dict(self._study.user_attrs)

    @property
    def trials(self) -> list[FrozenTrial]:
        """The finished trials in order."""
        return finished(self._study)

    @property
    def notes(self) -> dict[str, Any]:
        """Plain data by name."""
        return dict(self._notes)

    def add(self, trial: FrozenTrial) -> None:
        """Append a finished trial, once; raise RunError if that cannot be done for minutes.

        Where the file's folder is gone it is raised at once.
        """
        trial.set_user_attr(_ID, secrets.token_hex(8))
        own = trial.user_attrs[_ID]

        def written() -> bool:
            last = self._study.get_trials(deepcopy=False)[-2:]
            return any(one.user_attrs.get(_ID) == own for one in last)

        self._insist(lambda: self._study.add_trial(trial), written)

    def set_note(self, name: str, value: Any) -> None:
        """Keep plain data under a name; raise RunError as ``add`` does."""
        json.dumps(value)
        self._insist(lambda: self._study.set_user_attr(name, value), lambda: False)
        self._notes[name] = value

    def _insist(self, write: Callable[[], None], written: Callable[[], bool]) -> None:
        """Write; where that fails, look whether it was done after all, and try again."""
        start, failed = time.monotonic(), False
        while True:
            try:
                self._confirm()
                if not (failed and written()):
                    write()
                return
            except (OSError, SQLAlchemyError, StorageInternalError) as error:
                if not self.place.url and not self.place.path.parent.is_dir():
                    raise RunError(
                        f"A run directory must stay where it is: {self.place.path.parent} is gone, "
                        "and what was in it. Start in another."
                    ) from error
                if not failed:
                    cause, most = _first_line(error), self._patience
                    self._tell(f"waiting for {self.place}, {most:.0f} s at most ({cause})")
                failed = True
                if time.monotonic() - start > self._patience:
                    raise RunError(
                        f"A study must be writable: {self.place} ({_first_line(error)}). The "
                        "finished trials are kept, and resume goes on with them."
                    ) from error
            if not self.place.url:
                with contextlib.suppress(OSError):
                    _mend(self.place.path)
            time.sleep(_PAUSE)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return a study's trials in order; one that a broken connection stored twice is there once."""
    found: dict[object, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        found.setdefault(trial.user_attrs.get(_ID, trial.number), trial)
    return list(found.values())


def _first_line(error: BaseException) -> str:
    """Return the cause's first line: drivers' messages are long, and Optuna's are about commits."""
    cause = error
    while isinstance(cause, StorageInternalError) and cause.__cause__ is not None:
        cause = cause.__cause__
    original = getattr(cause, "orig", None) or cause
    lines = [line for line in str(original).splitlines() if line.strip()]
    return (lines or [type(original).__name__])[0][:200]


def _mend(path: Path) -> None:
    """Cut a torn last line, which a killed driver or machine may have left, and its stale lock."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        start = content.rfind(b"\n", 0, max(whole - 1, 0)) + 1
        try:
            json.loads(content[start:whole] or b"null")
        except ValueError:
            whole = start or whole  # a file that is one line of something else is not ours
        if whole < len(content):
            file.truncate(whole)

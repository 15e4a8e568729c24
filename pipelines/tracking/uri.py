"""Which MLflow store is meant, how it is shown, and whether it is there at all."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kdci.errors import StorageError
from kdci.store.artifacts import storage_errors

_SQLITE = "sqlite:///"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_START_IT = "start it, or unset MLFLOW_TRACKING_URI to use a file in the project folder"


def resolve_uri(root: Path) -> str:
    """Return the store's URI: ``MLFLOW_TRACKING_URI``, or a SQLite file in the project folder.

    The default is absolute: a relative one would make a store in every working folder.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    # Only what ends the path of a URI is escaped: MLflow also takes the rest as a plain path.
    path = str(root.resolve() / "mlflow.db")
    return _SQLITE + "".join(quote(char) if char in "%?\n" else char for char in path)


def sqlite_file(uri: str) -> Path | None:
    """Return the file behind a SQLite URI, absolute; None for other stores."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def remove_stray_folder(uri: str) -> None:
    """Remove the empty folder that MLflow makes for a SQLite URI with escapes, which it ignores."""
    file = sqlite_file(uri)
    if file is not None and "%" in uri:
        with suppress(OSError):
            Path(uri.removeprefix(_SQLITE)).parent.rmdir()


def artifact_location(uri: str, root: Path) -> str | None:
    """Return the folder for MLflow's copies of files; None: the tracking server decides.

    Without a server MLflow would put them below the working folder of whoever syncs first.
    """
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return None
    file = sqlite_file(uri)
    return ((root.resolve() if file is None else file.parent) / "mlruns").as_uri()


def redacted(uri: str) -> str:
    """Return ``uri`` without user, password and query, fit for messages."""
    if sqlite_file(uri) is not None:
        return uri.partition("?")[0]
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(text: str) -> str:
    """Return the first line of an error message without the credentials that URIs carry."""
    line = (text.strip().splitlines() or ["no reason given"])[0]
    line = re.sub(r"//[^/\s]*@", "//", line)
    return re.sub(r"\?[^\s'\")]*", "", line)[:300]


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn a failure of the store in the block into one line of ours."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        what, fix = f"MLflow refused: {without_secrets(str(error))}", ""
        if re.search("Max retries exceeded|timeout exception", str(error)):
            what, fix = "the tracking server does not answer", _START_IT
        # The cause is left out: its text may carry credentials.
        raise StorageError(redacted(uri), what, fix) from None


def require_store(uri: str) -> None:
    """Check in seconds that a database store can be used; MLflow itself tries for minutes.

    Raises:
        StorageError: The SQLite file is damaged or not writable, or no database listens.
    """
    file = sqlite_file(uri)
    if file is not None:
        _require_sqlite(file)
        return
    parts = urlsplit(uri)
    port = parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname and port and not parts.scheme.startswith("http"):
        try:
            socket.create_connection((parts.hostname, port), timeout=5).close()
        except OSError:
            what = "the tracking database does not answer"
            raise StorageError(redacted(uri), what, _START_IT) from None


def _require_sqlite(file: Path) -> None:
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file, timeout=30)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        fix = "make it writable, or move it away and sync again: it is made from the files"
        raise StorageError(str(file), str(error), fix) from None

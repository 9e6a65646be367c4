"""The tracking store's address, and addresses and errors with their secrets removed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from ganlib.config import TrackingConfig
from pipelines._stage import StageError, project_folder

__all__ = ["error_text", "shown", "sqlite_file", "store_uri"]

SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")
SECRETS = ("password", "passwd", "pwd", "token", "secret")
HALF = 200  # characters kept of the beginning and of the end of a long error


def store_uri(config: TrackingConfig) -> str:
    """`MLFLOW_TRACKING_URI`, else `tracking.uri`, else SQLite in the project folder; paths absolute.

    Raises StageError for an address that is not one of a store, and for a password in `tracking.uri`.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    variable = os.environ.get("MLFLOW_TRACKING_URI")
    for name, uri in (("tracking.uri", config.uri), ("MLFLOW_TRACKING_URI", variable)):
        if not uri:
            continue
        scheme = uri.partition(":")[0].partition("+")[0]
        if scheme not in SCHEMES:
            raise StageError(f"{name}: {shown(uri)!r} is not a store of MLflow; known: {', '.join(SCHEMES)}")
        try:
            parts = None if uri == "databricks" else make_url(uri)
        except (ArgumentError, ValueError) as error:  # ValueError: the port
            raise StageError(f"{name}: {shown(uri)!r} is not an address; expected SCHEME://HOST:PORT/NAME") from error
        if name == "tracking.uri" and parts and (parts.password or any(_is_secret(key) for key in parts.query)):
            raise StageError(
                f"tracking.uri: {shown(uri)!r} holds a password, which git and DVC would keep; "
                "set MLFLOW_TRACKING_URI in the environment instead"
            )
    uri = variable or config.uri or "sqlite:///mlflow.db"
    if (file := sqlite_file(uri)) is None:
        return uri
    address = make_url(uri).set(database=str(project_folder() / file))
    if unquote(text := address.render_as_string(hide_password=False)) == text:
        return text
    # MLflow would make the folder that the escaped path names, unless the driver is named
    return address.set(drivername="sqlite+pysqlite").render_as_string(hide_password=False)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, as SQLAlchemy reads the address: what is special in one is escaped in it."""
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    return None if not database or database.startswith(("file:", ":memory:")) else Path(database)


def shown(uri: str) -> str:
    """An address, or a path, without what may be secret: user, password, query, parameters and fragment."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, colon, _ = uri.partition(":")
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) or not colon:
        return uri
    try:
        parts = make_url(uri)
    except (ArgumentError, ValueError):
        return f"{scheme}:***"
    user, _, host = f"@{parts.host or ''}".rpartition("@")  # a password may hold "@"
    hidden_user = "***@" if parts.username is not None or user else ""
    port = "" if parts.port is None else f":{parts.port}"
    database = "" if parts.database is None else f"/{parts.database}"
    path = database if scheme.startswith("sqlite") else re.split("[?;#]", database)[0]
    return f"{scheme}://{hidden_user}{host}{port}{path}{'?***' if parts.query or path != database else ''}"


def error_text(error: BaseException, uri: str) -> str:
    """The error's text, with secrets of the store and of addresses in it removed. A long text loses its middle: that of
    requests names the cause at the end."""
    origin = getattr(error.__cause__, "orig", None)  # what the database said, without SQLAlchemy's advice around it
    text = " ".join(str(origin or error).split()) or type(error).__name__
    for secret in sorted(_secrets_of(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>()]+(?<![.,:;])", lambda found: shown(found.group()), text)
    return text if len(text) <= 2 * HALF else f"{text[:HALF]} … {text[-HALF:]}"


def _secrets_of(uri: str) -> set[str]:
    """Each secret of an address and of the environment, as it stands there, decoded and encoded."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    found = {value for key, value in os.environ.items() if key.startswith("MLFLOW_TRACKING_") and _is_secret(key)}
    try:
        parts = make_url(uri)
    except (ArgumentError, ValueError):
        pass
    else:
        found |= {str(parts.password or "")} | {str(value) for key, value in parts.query.items() if _is_secret(key)}
    return {form for secret in found if secret for form in (secret, quote(secret, safe=""), unquote(secret))}


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in SECRETS)

"""What psycopg and the server say, in durable's errors.

Law: a message says what, where and what to do; of an address it names host, port, database and user, and never repeats a URL, a
password, or values out of a row.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg

from durable.errors import (
    ConfigError,
    RepositoryUnavailableError,
    StorageError,
    StorageFullError,
    StoreFormatError,
)
from durable.store.postgres.migrations import grants

URL_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class Place(NamedTuple):
    """Where a store is, as it may be told: without a password.

    Arguments:
        host: as given, several with commas; empty: libpq's default.
        port, database, user: the same.
        schema: the store's schema.
    """

    host: str = ""
    port: str = ""
    database: str = ""
    user: str = ""
    schema: str = "durable_store"

    def __str__(self) -> str:
        parts = [f"host {self.host}" if self.host else "the default host"]
        parts += [f"{name} {value}" for name, value in (("port", self.port), ("database", self.database)) if value]
        return f"PostgreSQL ({', '.join(parts)})"


#: What libpq says of an address that it cannot read: it quotes the address, so only what is known of the kind of mistake is passed on.
_MISREADINGS = (
    ("unexpected spaces", "it has a space, which a URL writes as %20"),
    ("percent-encoded", "it has a % that is not followed by two hexadecimal digits; a URL writes % itself as %25"),
    ("unterminated quoted string", "a quote (') in it is not closed"),
    ('missing "="', f"it is neither a URL ({URL_FORM}) nor a list like `host=HOST dbname=DATABASE`"),
    ("invalid connection option", "it has an option that libpq does not know"),
    ("invalid URI query parameter", "it has an option after the ? that libpq does not know"),
    ("missing key/value separator", "an option after the ? has no value"),
    ("IPv6", "an IPv6 address in it is not closed with ]"),
)
_URL_ADVICE = (
    f"write it as {URL_FORM}, with the characters :/?#[]@% and spaces of user and password percent-encoded (@ is %40)"
)


def misreading(said: str) -> str:
    """What is wrong with an address, of which psycopg said this."""
    return next((reason for fragment, reason in _MISREADINGS if fragment in said), "libpq cannot read it")


def misread(reason: str) -> ConfigError:
    """An address cannot be read, for this reason."""
    return ConfigError(f"the address of the PostgreSQL store is malformed: {reason}; {_URL_ADVICE}", key="store")


class _Refusal(NamedTuple):
    """What a failed attempt to connect says (there is no SQLSTATE), and what to make of it."""

    pattern: str
    wrong: bool  # with the settings; else with the server, for now
    problem: str
    advice: str


_REFUSALS = (
    _Refusal("password authentication failed", True, "the password of user {user} is wrong, or there is no such user",
             "check user and password"),
    _Refusal("no password supplied", True, "user {user} needs a password", "put it into the URL, PGPASSWORD or ~/.pgpass"),
    _Refusal("authentication failed", True, "the server does not let user {user} in", "check user and pg_hba.conf"),
    _Refusal("no pg_hba.conf entry", True, "the server lets user {user} in from nowhere here, or only with other options",
             "check host, user, sslmode and pg_hba.conf"),
    _Refusal('role ".*" does not exist', True, "there is no user {user}",
             'check the user, or have it made: CREATE ROLE "{user}" LOGIN'),
    _Refusal("not permitted to log in", True, "user {user} may not log in", 'have it granted: ALTER ROLE "{user}" LOGIN'),
    _Refusal('database ".*" does not exist', True, "there is no database {database}",
             'check its name, or have it made: CREATE DATABASE "{database}"'),
    _Refusal("permission denied for database", True, "user {user} may not connect to database {database}",
             'have it granted: GRANT CONNECT ON DATABASE "{database}" TO "{user}"'),
    _Refusal("not known|could not translate host name|No address associated|nodename nor servname", True, "there is no such host",
             "check the host's name"),
    _Refusal("certificate (verify|required)|server certificate for|root certificate", True,
             "the server's certificate is not accepted", "check sslmode, sslrootcert and the host's name"),
    _Refusal("does not support SSL", True, "the server has no SSL", "set sslmode, or switch SSL on in the server"),
    _Refusal("invalid .* value", True, "an option in the address has a value that it cannot have", "check these options"),
    _Refusal("Temporary failure in name resolution", False, "the host's name cannot be looked up now",
             "check the host's name and this machine's name servers"),
    _Refusal("Connection refused|No such file", False, "nothing listens there",
             "check host and port, and whether the server is started"),
    _Refusal("starting up", False, "the server is starting", "try again"),
    _Refusal("shutting down", False, "the server is shutting down", "try again"),
    _Refusal("recovery mode|not yet accepting", False, "the server recovers from a crash", "try again"),
    _Refusal("not (currently )?accepting connections", False, "the database takes no connections", "try again"),
    _Refusal("too many (clients|connections)|connection slots", False, "all of the server's connections are in use",
             "raise max_connections there, or lower postgres.connections_max here"),
    _Refusal("timeout expired", False, "it did not answer in time", "check host, port and firewalls"),
)  # fmt: skip


def unreachable(error: BaseException, place: Place, *, opening: bool) -> StorageError | ConfigError:
    """Say why an attempt to connect failed.

    Arguments:
        opening: this process has not been connected yet: settings may be wrong. What has worked before is away, not wrong.
    """
    if isinstance(error, StorageError | ConfigError) or getattr(error, "sqlstate", None) is not None:
        return translate(error, place)
    said = "timeout expired" if isinstance(error, TimeoutError) else str(error)
    known = next((refusal for refusal in _REFUSALS if re.search(refusal.pattern, said)), None)
    if known is None:
        return RepositoryUnavailableError(f"{place} cannot be reached: {_first_line(said)}")
    names = {"user": place.user or "(the default)", "database": place.database or "(the default)"}
    message = f"{place} cannot be reached: {known.problem.format(**names)}; {known.advice.format(**names)}"
    return ConfigError(message, key="store") if known.wrong and opening else RepositoryUnavailableError(message)


_AWAY = {
    "25006": "it is read-only: a standby, or a server that was made so",
    "25P03": "a transaction was left open for longer than postgres.idle_seconds",
    "25P04": "a transaction took longer than the server's transaction_timeout",
    "40001": "a transaction met another one",
    "40P01": "a transaction met another one in a deadlock",
    "53200": "it is out of memory",
    "53300": "all of its connections are in use",
    "55P03": "a lock was not free within postgres.statement_seconds",
    "57014": "a statement took longer than postgres.statement_seconds, or was cancelled",
    "57P01": "it ended the session: it is shut down or restarted, or an administrator did so",
    "57P02": "one of its processes crashed and it starts anew",
    "57P03": "it takes no connections now",
    "57P05": "it ended the session for having been idle",
}


def translate(error: BaseException, place: Place | None = None) -> StorageError | ConfigError:
    """Return what to raise for an error of psycopg, or of the network, during work.

    Arguments:
        error: what was raised; durable's own errors come back as they are.
        place: where it was; None: not known.
    """
    if isinstance(error, StorageError | ConfigError):
        return error
    place = place or Place()
    state = getattr(error, "sqlstate", None)
    if state is None:
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | OSError | EOFError):
            return RepositoryUnavailableError(f"the connection to {place} is lost: {_first_line(str(error))}")
        return StorageError(f"{place}: {type(error).__name__}")
    if state in _AWAY:
        return RepositoryUnavailableError(f"{place} cannot do this now: {_AWAY[state]}")
    said = _primary(error)
    if state.startswith("08"):
        return RepositoryUnavailableError(f"the connection to {place} is lost: {said}")
    if state == "53100":
        return StorageFullError(f"{place} has no space left on its disk; nothing was written")
    if state == "42501":
        return _forbidden(said, place)
    if state in {"42P01", "3F000"}:
        return StoreFormatError(
            f"{place} has no tables of durable in schema {place.schema!r} ({said}): run `durable migrate --store URL`, "
            "or check postgres.schema"
        )
    return StorageError(f"{place} refused a statement: {said} (SQLSTATE {state})")


def _forbidden(said: str, place: Place) -> StorageError:
    user = place.user or "USER"
    if "for database" in said:
        granting = f'GRANT CREATE ON DATABASE "{place.database}" TO "{user}";'
        return StorageError(
            f"{place}: user {user} may not create the schema {place.schema!r} ({said}); run `durable migrate` as one who may, "
            f"or have it granted:\n{granting}"
        )
    return StorageError(
        f"{place}: user {user} lacks a right in schema {place.schema!r} ({said}); have the owner of the tables run:\n"
        + grants(place.schema, user, "execute")
    )


def _primary(error: BaseException) -> str:
    """The server's message without its detail, which may quote values."""
    diagnostic = getattr(error, "diag", None)
    return (diagnostic.message_primary if diagnostic else None) or type(error).__name__


def _first_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[0].strip() if lines else "no reason was given"

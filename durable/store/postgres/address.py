"""The address of a store: a URL or DSN of libpq, taken apart into its hosts.

Law: no error says anything of the address but what is known to be a host, a port, a database or a user.
"""

from __future__ import annotations

import math
from typing import Any

import psycopg
from psycopg import conninfo

from durable.config import PostgresSettings
from durable.store.postgres.failures import Place, misread, misreading

#: Of libpq, where the address does not say otherwise: a host that vanished is noticed after 25 s.
_DEFAULTS = {
    "fallback_application_name": "durable",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}


def targets(url: str, settings: PostgresSettings) -> list[dict[str, Any]]:
    """Return what to connect with, for each host of an address. Raises `ConfigError` for an address that cannot be read."""
    reason = _mistake(url)
    given: dict[str, Any] = {}
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        reason = reason or misreading(str(error))
    if reason:  # outside of the handler: the address must not hang on the error as its context
        raise misread(reason)
    timeout = {"connect_timeout": str(max(2, math.ceil(settings.connect_seconds)))}
    options = {**_DEFAULTS, **timeout, **given, "client_encoding": "utf8"}
    lists = {name: str(options[name]).split(",") for name in ("host", "hostaddr") if options.get(name)}
    count = max(map(len, lists.values()), default=1)
    ports = str(options.get("port", "")).split(",")
    lists["port"] = ports * count if len(ports) == 1 else ports
    if any(len(values) != count for values in lists.values()):
        raise misread("it has not as many ports, or host addresses, as hosts")
    if any(port and not (port.isdecimal() and 0 < int(port) <= 65535) for port in ports):
        raise misread(
            "a port is not a number between 1 and 65535, as when a password has a / or : that is not percent-encoded"
        )
    found = []
    for place in range(count):
        own = {name: values[place] for name, values in lists.items()}
        found.append({name: value for name, value in {**options, **own}.items() if value != ""})
    return found


def _mistake(url: str) -> str | None:
    """What libpq would take for a host or a database, though it is a part of a password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        return None
    authority, _, path = rest.partition("/")
    if authority.count("@") > 1 or "@" in path.partition("?")[0]:
        return "it has an @ where none can be"
    return None


def place_of(targets: list[dict[str, Any]], settings: PostgresSettings) -> Place:
    """Where these lead, as it may be told."""

    def joined(name: str) -> str:
        values = [str(target.get(name, "")) for target in targets]
        return values[0] if len(set(values)) == 1 else ",".join(values)

    return Place(
        joined("host") or joined("hostaddr"), joined("port"), joined("dbname"), joined("user"), settings.schema
    )

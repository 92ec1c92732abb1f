"""`durable migrate`: the tables of a PostgreSQL store, created or brought up to date, and who may use them.

Law: what it does is what `durable.store.postgres.migrations` says; with --print it connects nowhere.
"""

from __future__ import annotations

from argparse import Namespace

from durable.cli.target import Target, require_psycopg
from durable.cli.terminal import escaped
from durable.config import PostgresSettings
from durable.errors import ConfigError


async def migrate(args: Namespace) -> int:
    """Create or update the tables, and let roles use them."""
    grants = _grants(args)
    if args.print:
        if not grants:
            raise ConfigError(
                "--print shows what lets a role use the store: name one with --grant-execute or --grant-read"
            )
        print("\n".join(sql for _, sql in grants))
        return 0
    target = Target.of(args)
    if not target.is_shared:
        raise ConfigError(
            "name the store with --store postgresql://...; one in a folder is brought up to date when it is opened",
            key="store",
        )
    name = escaped(target.name)
    from durable.store.postgres import migrations
    from durable.store.postgres.session import Sessions

    schema = target.settings.schema
    sessions = Sessions(target.text, target.settings)
    await sessions.open()
    try:
        async with sessions.connection() as session:
            with sessions.translated():
                before = await migrations.version_of(session, schema)
                await migrations.migrate(session, schema)
                after = await migrations.version_of(session, schema)
                print(f"{name}: {_change(before, after)}")
                for what, sql in grants:
                    await session.execute(sql.encode())
                    print(f"{name}: {what}")
    finally:
        await sessions.close()
    return 0


def _grants(args: Namespace) -> list[tuple[str, str]]:
    """What roles are to be let do, in words and in SQL."""
    if not args.grant_execute and not args.grant_read:
        return []
    require_psycopg()
    from durable.store.postgres.migrations import grants

    schema = PostgresSettings(schema=args.schema or PostgresSettings().schema).schema
    executing = [(f"role {escaped(role)} may execute", grants(schema, role, "execute")) for role in args.grant_execute]
    return executing + [(f"role {escaped(role)} may read", grants(schema, role, "read")) for role in args.grant_read]


def _change(before: int, after: int) -> str:
    if before == after:
        return f"the tables are of version {after} already"
    return f"the tables are of version {after} now, " + (f"after version {before}" if before else "created")

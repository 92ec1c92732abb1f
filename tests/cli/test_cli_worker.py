"""`durable worker`: real processes on a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from durable import Durable, Status
from tests.cli import working
from tests.cli.workers import SECONDS_MAX, Place, Worker, begun, cli
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer

PASSWORD = "s3cr3t-of-the-test"
NOWHERE = f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/nothing"


async def ended(handle: Any) -> Any:
    async with asyncio.timeout(SECONDS_MAX):
        return await handle


async def test_it_says_what_it_executes_and_then_does(place: Place) -> None:
    """One line when it is ready: the tasks, the store, and under which name it holds runs, which `durable why` shows, too."""
    async with place.client() as app:
        handle = await app.start(working.long.options(key="one"))
        with place.worker() as worker:
            assert "executes 4 tasks (working_long, working_nap, working_parent, working_wait) of " in worker.ready
            assert f"schema {place.schema!r}" in worker.ready
            await begun(handle)
            executor = worker.ready.split("as executor ")[1].strip()
            assert f"it is held by executor {executor} (process {worker.pid} on " in place.cli("why", "one").out
            place.go.touch()
            assert await ended(handle) == 3
            assert worker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_body_that_is_at_work_may_finish(place: Place, number: int) -> None:
    """A signal in the middle of a body: nothing new is taken, the body ends within the grace, and so does the process, with 0."""
    async with place.client() as app:
        handle = await app.start(working.long)
        with place.worker() as worker:
            await begun(handle)
            worker.send(number)
            assert "stops" in worker.line()
            later = await app.start(working.long)
            place.go.touch()
            assert worker.ended() == 0
        assert await handle.status() is Status.COMPLETED
        assert await later.status() is Status.READY
    assert place.notes == ["first", "hold"]


async def test_what_does_not_finish_is_handed_back(place: Place) -> None:
    """After the grace the body is stopped, and another worker goes on at once, with what was recorded: no lease has to pass."""
    async with place.client() as app:
        handle = await app.start(working.long.options(key="long"))
        with place.worker("--lease", "600") as worker:
            await begun(handle)
            assert worker.stop() == 0
        assert await handle.status() is Status.READY
        place.go.touch()
        with place.worker() as worker:
            assert await ended(handle) == 3
            assert worker.stop() == 0
        assert "recovered" not in place.cli("show", "long").out
    assert place.notes == ["first", "hold", "hold"]


async def test_the_second_signal_ends_it_at_once(place: Place) -> None:
    """By the signal itself, as whoever started it expects of it."""
    async with place.client() as app:
        handle = await app.start(working.long)
        with place.worker() as worker:
            await begun(handle)
            worker.send(signal.SIGTERM)
            assert "stops" in worker.line()
            worker.send(signal.SIGTERM)
            assert worker.ended() == -signal.SIGTERM


async def test_another_takes_over_from_one_that_was_killed(place: Place) -> None:
    """kill -9: when the lease has passed another one recovers the run; the recorded step does not run again."""
    async with place.client() as app:
        handle = await app.start(working.long.options(key="long"))
        with place.worker("--lease", "1") as first:
            await begun(handle)
            with place.worker("--lease", "1") as second:
                first.send(signal.SIGKILL)
                first.ended()
                place.go.touch()
                assert await ended(handle) == 3
                assert second.stop() == 0
        assert "recovered" in place.cli("show", "long").out
    assert place.notes == ["first", "hold", "hold"]


async def test_no_more_runs_than_its_concurrency_execute_at_once(place: Place) -> None:
    """The second run waits for the first, and `durable why` says for what."""
    async with place.client() as app:
        first = await app.start(working.long)
        with place.worker("--concurrency", "1") as worker:
            await begun(first)
            second = await app.start(working.long.options(key="second"))
            shown = place.cli("why", "second").out
            assert "it waits for a slot: 1 executor that is alive knows its task 'working_long'" in shown
            place.go.touch()
            assert await ended(second) == 3
            assert worker.stop() == 0


async def test_an_application_has_a_store_of_its_own_unless_an_option_says_otherwise(
    place: Place, tmp_path: Path
) -> None:
    """MODULE:APP opens APP; with --store it is the same object, on that store."""
    own = {**place.environment, "WORKING_STORE": str(tmp_path / "own")}
    with Worker("tests.cli.working:app", environment=own) as worker:
        assert "the store of tests.cli.working:app" in worker.ready
        assert worker.stop() == 0
    assert (tmp_path / "own" / "log").is_dir()
    with Worker("tests.cli.working:app", *place.words, environment={**own, "WORKING_STORE": NOWHERE}) as worker:
        async with place.client() as app:
            handle = await app.start(working.long)
            await begun(handle)
            place.go.touch()
            assert await ended(handle) == 3
        assert worker.stop() == 0


def test_a_folder_goes_on_too(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on a folder goes on with what is in it, and makes none where there is none."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    folder = str(tmp_path / "store")
    assert cli("worker", "tests.cli.working", "--store", folder).code == 1
    assert not os.path.exists(folder)

    async def left() -> None:
        async with Durable(folder) as app:
            await begun(await app.start(working.long.options(key="left")))

    asyncio.run(left())
    place.go.touch()
    with Worker("tests.cli.working", "--store", folder, environment=place.environment) as worker:
        assert folder in worker.ready
        assert cli("events", "left", "--store", folder, "--follow").out.splitlines()[-1].split()[2] == "completed"
        assert worker.stop() == 0


# --- wrong use ------------------------------------------------------------------------------------------------------------------------

MODULES = {
    "empty.py": "",
    "broken.py": "import durable\n\ndurable.no_such_name\n",
    "lacking.py": "import no_such_library\n",
    "good.py": "from durable import task\n\n@task\nasync def work() -> None: ...\n\nnot_an_app = 1\n",
    "pkg/__init__.py": "",
    "pkg/tasks.py": "from . import names\nfrom durable import task\n\n@task(name=names.NAME)\nasync def work() -> None: ...\n",
    "pkg/names.py": "NAME = 'packed'\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with modules in it, not a word of which this process knows."""
    for name, text in MODULES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (("missing", "--store", NOWHERE), 2, "there is no module 'missing'"),
        (("pkg.missing", "--store", NOWHERE), 2, "there is no module 'pkg.missing'"),
        (("missing.py", "--store", NOWHERE), 2, "there is no file 'missing.py'"),
        (("lacking", "--store", NOWHERE), 2, "No module named 'no_such_library'"),
        (("broken.py", "--store", NOWHERE), 2, "broken.py:3"),
        (("empty", "--store", NOWHERE), 2, "empty has no task"),
        (("good:app", "--store", NOWHERE), 2, "no Durable object 'app'; it has none at all"),
        (("good:not_an_app", "--store", NOWHERE), 2, "no Durable object 'not_an_app'"),
        (("good",), 2, "--store"),
        (("good", "--lease", "3"), 2, "--store"),
        (("good", "--store", "mysql://host/database"), 2, "a URL must begin with postgresql://"),
        (("good", "--store", f"postgresql://somebody:{PASSWORD}@host:port/name"), 2, "a port is not a number"),
        (("good", "--store", NOWHERE, "--schema", "Not A Name"), 2, "postgres.schema"),
        (("good", "--store", ".", "--lease", "3"), 1, "no store"),
        (("good", "--store", NOWHERE), 1, "nothing listens there"),
        (("pkg/tasks.py", "--store", NOWHERE), 1, "nothing listens there"),
        (("pkg.tasks", "--store", NOWHERE), 1, "nothing listens there"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(project: Path, words: tuple[str, ...], code: int, hint: str) -> None:
    """Exit code 2 for wrong use, 1 for a store that cannot be had; never a traceback, never the password."""
    shown = cli("worker", *words, cwd=project, environment={"PYTHONPATH": ""})
    assert (shown.code, shown.out) == (code, "")
    assert len(shown.err.splitlines()) == 1
    assert hint in shown.err
    assert PASSWORD not in shown.err


@pytest.mark.parametrize(
    "words",
    [
        ("runs", NOWHERE),
        ("show", NOWHERE, "--store", NOWHERE),
        ("show", "key", "--store", NOWHERE),
        ("cancel", "key", "--store", NOWHERE),
        ("why", "key", "--store", f"host=somewhere password={PASSWORD}"),
        ("worker", "good", "--lease", NOWHERE),
        ("migrate", "--store", NOWHERE),
        ("log", "verify", "--store", NOWHERE),
    ],
)
def test_no_command_repeats_a_password(project: Path, words: tuple[str, ...]) -> None:
    """Not even where it stands in the wrong place."""
    shown = cli(*words, cwd=project)
    assert shown.code in (1, 2)
    assert shown.err
    assert PASSWORD not in shown.out + shown.err


def test_what_it_says_of_a_store_has_no_password(tmp_path: Path) -> None:
    """Nor is a wrong one repeated, or one that the server does not ask for."""
    need_postgres()
    with PostgresServer(password=PASSWORD) as server:
        place = Place(server.url, "durable_store", tmp_path)
        with place.worker() as worker:
            assert "PostgreSQL (host " in worker.ready
            assert PASSWORD not in worker.ready
            assert worker.stop() == 0
        wrong = Place(server.url_for(password=f"{PASSWORD}/wrong"), "durable_store", tmp_path)
        for shown in (place.cli("runs"), place.cli("why", "nobody"), wrong.cli("runs"), wrong.cli("migrate")):
            assert PASSWORD not in shown.out + shown.err
        assert (shown.code, "the password of user postgres is wrong" in shown.err) == (2, True)


def test_without_psycopg_it_says_what_to_install(project: Path) -> None:
    """A store in PostgreSQL needs an extra; the other commands do not."""
    (project / "sitecustomize.py").write_text("import sys\n\nsys.modules['psycopg'] = None\n")
    without = {"PYTHONPATH": os.pathsep.join([str(project), *sys.path])}
    for words in (("worker", "good"), ("runs",), ("cancel", "key"), ("migrate",)):
        shown = cli(*words, "--store", NOWHERE, cwd=project, environment=without)
        assert (shown.code, shown.out) == (2, "")
        assert "pip install 'durable[postgres]'" in shown.err
        assert len(shown.err.splitlines()) == 1


def test_settings_and_store_come_from_variables(place: Place, tmp_path: Path) -> None:
    """Without options the variables say what holds; what is wrong in one is one line that names it, and shows no password."""
    environment = {
        **place.environment,
        "DURABLE_STORE": place.url,
        "DURABLE_POSTGRES_SCHEMA": place.schema,
        "DURABLE_POSTGRES_LEASE_SECONDS": "600",
        "DURABLE_LIMITS_MAX_RUNNING": "1",
    }

    async def start() -> None:
        async with place.client() as app:
            await app.start(working.long.options(key="first"))
            await app.start(working.long.options(key="second"))

    with Worker("tests.cli.working", environment=environment) as worker:
        assert f"schema {place.schema!r}" in worker.ready
        asyncio.run(start())
        shown = cli("why", "second", environment=environment).out
        assert "it waits for a slot: 1 executor that is alive knows its task" in shown or "it is held by" in shown
        held = cli("why", "first", environment=environment).out + shown
        assert "lease lasts 9 min" in held or "lease lasts 10 min" in held or "lease lasts 5" in held, held
        place.go.touch()
        assert worker.stop() == 0
    wrong = cli("runs", environment={"DURABLE_STORE": NOWHERE, "DURABLE_POSTGRES_LEASE_SECONDS": "soon"})
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    assert "DURABLE_POSTGRES_LEASE_SECONDS" in wrong.err and PASSWORD not in wrong.err
    away = cli("runs", environment={"DURABLE_STORE": NOWHERE})
    assert away.code == 1 and PASSWORD not in away.err

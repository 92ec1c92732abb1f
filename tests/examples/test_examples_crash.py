"""Each example's main task, with a crash before and after every commit of it, and what it did counted outside the engine.

Law: whatever crashes, the result is the same; no child is started twice; and a body, a coordinator or a step is not called again once what
it came to is on record.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from http.server import ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import durable
from durable import DurableError, Handle
from durable.core.query import RunFilter
from durable.core.records import ENDS, Call, Kind
from durable.core.run import Run
from durable.store import MemoryStore
from durable.store.base import Unit
from durable.tasks.host import current_host, current_scope
from durable.testing.crash import CrashReport, crash_everywhere

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

#: What was called: as what, in which run, and for a step which call.
Called = tuple[str, str, Call | None]


class Outside:
    """What the functions of an example did, and what of it was on record by then."""

    def __init__(self) -> None:
        self.stores: list[WatchedStore] = []
        self.over: set[Called] = set()
        self.calls: Counter[Called] = Counter()
        self.again: list[Called] = []
        #: The runs whose body began, by task, in order.
        self.runs: dict[str, dict[str, None]] = {}

    def make_store(self) -> WatchedStore:
        """A store for the next world."""
        self.stores.append(WatchedStore(self))
        return self.stores[-1]

    def watch(self, role: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, and it is noted when it is called."""
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def watched(*args: Any, **kwargs: Any) -> Any:
                self.note(role, function)
                return await function(*args, **kwargs)
        else:

            @wraps(function)
            def watched(*args: Any, **kwargs: Any) -> Any:
                self.note(role, function)
                return function(*args, **kwargs)

        return watched

    def note(self, role: str, function: Callable[..., Any]) -> None:
        scope: Any = current_scope.get()
        called = (role, scope.run_id, getattr(scope, "call", None))
        self.calls[called] += 1
        if called in self.over:
            self.again.append(called)
        if role == "body":
            self.runs.setdefault(function.__name__, {})[scope.run_id] = None


class WatchedStore(MemoryStore):
    """A store that tells what is durable in it."""

    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self._outside = outside

    async def commit(self, units: Sequence[Unit]) -> None:
        await super().commit(units)
        over = self._outside.over
        for record in (record for unit in units for record in unit):
            body, coordinator = ("body", record.run_id, None), ("coordinator", record.run_id, None)
            if record.kind is Kind.STEP_COMPLETED:
                over.add(("step", record.run_id, record.call))
            elif record.kind in ENDS:
                over.update((body, coordinator))
            elif record.kind is Kind.CHILDREN_STARTED:
                over.add(coordinator if body in over else body)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Outside:
    """Counts what happens outside the engine, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Outside()


@pytest.fixture
def load(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports an example, with each of its tasks, coordinators and steps watched, and without its waits between tries."""
    task, step = durable.task, durable.step

    def watching(decorator: Any, role: str) -> Any:
        def decorate(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
            if function is not None:
                return decorator(outside.watch(role, function))
            if "on_children_complete" in options:
                options["on_children_complete"] = outside.watch("coordinator", options["on_children_complete"])
            if "retry" in options:
                options["retry"] = replace(options["retry"], delay=0.0)
            return lambda function: decorator(**options)(outside.watch(role, function))

        return decorate

    def load_example(name: str) -> ModuleType:
        spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        with monkeypatch.context() as patched:
            patched.setattr(durable, "task", watching(task, "body"))
            patched.setattr(durable, "step", watching(step, "step"))
            spec.loader.exec_module(module)
        return module

    return load_example


async def runs_of(store: MemoryStore) -> list[Run]:
    await store.open()
    return await store.query(RunFilter(limit=100_000))


async def survives(outside: Outside, task: Any, *args: Any, make_store: Any = None) -> CrashReport:
    """Crash everywhere, and check what every world left behind."""
    report = await crash_everywhere(task, *args, make_store=make_store or outside.make_store)
    assert report.crashes > 0
    assert outside.again == [], "what was on record was called again"
    assert set(outside.calls) <= outside.over, "whatever was called came to something that is on record"
    assert max(outside.calls.values()) <= 5, "with one crash and a few retries, nothing is called often"
    for store in outside.stores:
        runs = await runs_of(store)
        born = Counter(run.parent_id for run in runs if run.parent_id is not None)
        wanted: Counter[str | None] = Counter()
        for run in runs:
            assert run.status == "completed" and run.closed, run
            for record in await store.history(run.run_id):
                if record.kind in (Kind.CHILDREN_STARTED, Kind.COORDINATING):
                    wanted[run.run_id] += record.head.get("children", 0)
                elif record.kind is Kind.CHILD_STARTED:
                    wanted[run.run_id] += 1
        assert +wanted == born, "each child was started, once"
    return report


async def tasks_of(store: MemoryStore) -> Counter[str]:
    return Counter(run.task for run in await runs_of(store))


async def same_runs_in_all_worlds(outside: Outside) -> Counter[str]:
    """How many runs there are of each task, the same after every crash."""
    expected = await tasks_of(outside.stores[0])
    for store in outside.stores:
        assert await tasks_of(store) == expected
    return expected


@asynccontextmanager
async def sending(name: str, value: object, run_ids: Callable[[], list[str]]) -> Any:
    """Send a signal to each of these runs, again until it is acknowledged, as a service does that calls a webhook."""
    acknowledged: set[str] = set()

    async def send() -> None:
        while True:
            for run_id in run_ids():
                if run_id not in acknowledged:
                    with suppress(DurableError):  # it is down, or was when this came: try again
                        await Handle(current_host(), run_id, None).send(name, value)
                        acknowledged.add(run_id)
            await asyncio.sleep(0.001)

    sender = asyncio.create_task(send())
    try:
        yield
    finally:
        sender.cancel()
        await asyncio.wait((sender,))


async def at_once(_: float) -> None:
    """In place of a sleep."""


# --- families -------------------------------------------------------------------------------------------------------------------


async def test_file_upload(outside: Outside, load: Callable[[str], Any], tmp_path: Path) -> None:
    """The file is stored, its title and its summary are made once, and the coordinator has them."""
    (tmp_path / "file.txt").write_text("# The title\n\nsome words\n")
    report = await survives(outside, load("file_upload").upload_file, "file.txt")
    told = report.result
    assert (told.path, told.size, told.title) == ("file.txt", 24, "The title")
    assert told.summary.startswith("3 lines, 5 words")
    assert await same_runs_in_all_worlds(outside) == {"upload_file": 1, "extract_file_title": 1, "summarize_file": 1}


async def test_task_tree(outside: Outside, load: Callable[[str], Any]) -> None:
    """Row 14 of the reference's table, flattened, in order."""
    report = await survives(outside, load("task_tree").root, "world")
    who = ["root task", *(f"task {label}" for label in ("A", "A1", "A2", "A3", "B1", "B2", "B3"))]
    assert report.result == [f"Hello from {each}, world!" for each in who]
    assert await same_runs_in_all_worlds(outside) == {
        "tree_root": 1,
        "tree_branch": 1,
        "tree_leaf": 3,
        "tree_first >> tree_second >> tree_third": 1,
        **dict.fromkeys(("tree_first", "tree_second", "tree_third"), 1),
    }


async def test_recursive_count(outside: Outside, load: Callable[[str], Any]) -> None:
    """Row 15 of the reference's table: ten levels, each counted by its coordinator, once."""
    report = await survives(outside, load("recursive_count").count_from, 0, 9)
    assert report.result == 10
    assert await same_runs_in_all_worlds(outside) == {"count_from": 10}


async def test_polling(
    outside: Outside, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each look is recorded once; the service tells time by how often it was asked."""
    example = load("polling")
    monkeypatch.setattr(example, "time", SimpleNamespace(time=count().__next__))
    monkeypatch.setattr(example, "RENDER_SECONDS", 3)
    monkeypatch.setattr(example, "EVERY", timedelta(milliseconds=1))

    def make_store() -> MemoryStore:
        (tmp_path / "film.order").unlink(missing_ok=True)
        return outside.make_store()

    for render in (example.render_in_a_loop, example.render_step_by_step):
        assert (await survives(outside, render, "film", make_store=make_store)).result == "film.mp4"


async def test_webhook(outside: Outside, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider calls until it is acknowledged; what was acknowledged is not lost, and the order goes on once."""
    example = load("webhook")
    asked: list[str] = []

    def remember(_: float, call_back: object, args: tuple[str, int]) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: asked.append(args[0].rpartition("/")[2]))

    monkeypatch.setattr(example, "Timer", remember)
    async with sending("paid", {"amount": 12}, lambda: list(asked)):
        report = await survives(outside, example.fulfil, "tea", 12, "http://nowhere")
    assert report.result == "2 x tea shipped, 12 paid"
    assert await same_runs_in_all_worlds(outside) == {"fulfil": 1, "reserve_goods": 1, "take_payment": 1}


async def test_map_items(outside: Outside, load: Callable[[str], Any]) -> None:
    """Scaled down: twelve items, four at once."""
    report = await survives(outside, load("map_items").longest_collatz, 12, 4)
    assert report.result == (19, 9)
    for store in outside.stores:
        [run] = await runs_of(store)
        assert sum(record.kind is Kind.STEP_COMPLETED for record in await store.history(run.run_id)) == 12


# --- the others -------------------------------------------------------------------------------------------------------------------


async def test_quickstart(outside: Outside, load: Callable[[str], Any]) -> None:
    """Two steps."""
    assert (await survives(outside, load("quickstart").greet, "world")).result == 13


async def test_count_to_n(outside: Outside, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that takes care of recovery itself emits each number once."""
    example = load("count_to_n")
    monkeypatch.setattr(example, "asyncio", SimpleNamespace(sleep=at_once))
    assert (await survives(outside, example.count_to, 4)).result == 4
    for store in outside.stores:
        [run] = await runs_of(store)
        assert sum(record.kind is Kind.EVENT for record in await store.history(run.run_id)) == 4


async def test_pipeline(
    outside: Outside, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Steps in threads, some at once."""
    example = load("pipeline")
    monkeypatch.setattr(example, "time", SimpleNamespace(sleep=lambda _: None))
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("a", "b", "c"):
        (sources / f"{name}.py").write_text(f"def {name}(): ...\n")
    assert (await survives(outside, example.pipeline, str(sources))).result == "lines.csv"
    assert (tmp_path / "lines.csv").read_text() == "a.py,1,1\nb.py,1,1\nc.py,1,1\n"


@pytest.fixture
def bank(load: Callable[[str], Any]) -> Iterator[tuple[Any, str]]:
    """The example of the API client, and the address of its server."""
    example = load("api_client")
    example.Bank.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), example.Bank)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield example, f"http://127.0.0.1:{server.server_port}/payments"
    server.shutdown()
    server.server_close()


async def test_api_client(outside: Outside, bank: tuple[Any, str]) -> None:
    """Two tries fail, some are repeated by a crash, and the bank books each payment once."""
    example, url = bank
    booked: list[dict[str, int]] = []

    def make_store() -> MemoryStore:
        example.Bank.requests, example.Bank.booked = 0, {}
        booked.append(example.Bank.booked)
        return outside.make_store()

    report = await survives(outside, example.settle, url, [120, 80], make_store=make_store)
    assert report.result == 200
    assert all(sorted(each.values()) == [80, 120] for each in booked)


async def test_approval(outside: Outside, load: Callable[[str], Any]) -> None:
    """A decision that was acknowledged is not lost, whether it came before the run waited for it or after."""
    example = load("approval")
    decision = {"approved": True, "by": "Ada"}
    async with sending("decision", decision, lambda: list(outside.runs.get("expense", ()))):
        report = await survives(outside, example.expense, 250)
    assert report.result == "reservation of 250: paid out, approved by Ada"


def test_every_example_is_crashed() -> None:
    """An example whose crashes no test looks at would promise what nobody checked."""
    source = Path(__file__).read_text("utf-8")
    assert [path.stem for path in EXAMPLES.glob("*.py") if f'load("{path.stem}")' not in source] == []

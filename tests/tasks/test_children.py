"""Children and coordinators, as far as they need no engine: how a child is made, stored, read back and given its outcome."""

from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest

from durable import (
    Child,
    ConfigError,
    Context,
    DecodeError,
    DefinitionError,
    Handle,
    NotStorableError,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunTimedOutError,
    Status,
    TransitionError,
    ValidationError,
    step,
    task,
)
from durable.codec import TaggedJson
from durable.config import PayloadSettings
from durable.core.run import Run
from durable.tasks.child import found_children, new_children, register_children
from durable.tasks.definition import NO_OPTIONS, FunctionFacts, StartOptions


@dataclass
class Report:
    title: str


@dataclass
class Uploaded:
    path: str
    title: Child[str]
    report: Child[Report]
    more: list[Child[Any]] = field(default_factory=list)


@task(name="kids_title")
async def title(path: str, *, upper: bool = False) -> str:
    return path.upper() if upper else path


@task(name="kids_report")
async def report(ctx: Context, path: str) -> Report:
    return Report(path)


@task(name="kids_upload")
async def upload(path: str) -> Uploaded:
    return Uploaded(path, title.child(path), report.child(path))


@task(name="kids_takes_children")
async def takes_children(up: Uploaded, child: Child[str], several: list[Child[int]]) -> None: ...


@pytest.fixture
def codec() -> TaggedJson:
    made = TaggedJson()
    register_children(made)
    return made


@pytest.fixture
def ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"run-{next(numbers)}"


def ended(run_id: str, codec: TaggedJson, value: object = None, task: str = "kids_title", **fields: Any) -> Run:
    result = None if "status" in fields else codec.encode(value)
    return Run(run_id, **{"task": task, "status": Status.COMPLETED, "result": result, **fields})


def started(run_id: str, codec: TaggedJson) -> Child[Any]:
    child = codec.decode(b'{"$":"child","v":"%s"}' % run_id.encode())
    assert isinstance(child, Child)
    return child


def done(run_id: str, codec: TaggedJson, value: object = None, **fields: Any) -> Child[Any]:
    child = started(run_id, codec)
    child.end(ended(run_id, codec, value, **fields), codec)
    return child


# --- new ------------------------------------------------------------------------------------------------------------------------


def test_a_child_is_a_bound_call() -> None:
    """It holds the task, its options and the arguments by name; nothing runs."""
    child = title.options(retry=3).child("x", upper=True)
    assert child.call == (title.definition, StartOptions(retry=Retry(3)), {"path": "x", "upper": True})
    assert report.child("x").call == (report.definition, NO_OPTIONS, {"path": "x"})
    assert repr(child) == "<child 'kids_title': new>"


def test_wrong_arguments_are_refused_at_once() -> None:
    """As they are at `start()`."""
    with pytest.raises(ValidationError, match="kids_title") as caught:
        title.child(1)  # type: ignore[arg-type]
    assert caught.value.field == "path"
    with pytest.raises(ValidationError, match="called wrongly"):
        title.child()  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["run_id", "status", "ok", "result", "error"])
def test_a_new_child_tells_nothing(name: str) -> None:
    """It has no run; the error says why, and what to do."""
    with pytest.raises(TransitionError, match=r"'kids_title': new> has no run yet.*Return it.*on_children_complete"):
        getattr(title.child("x"), name)


def test_a_new_child_is_equal_to_itself_only() -> None:
    """Two calls with the same arguments are two runs; a copy is the same child."""
    one, other = title.child("x"), title.child("x")
    assert one != other and len({one, other, one}) == 2
    assert one != "x"
    assert copy.copy(one) is one and copy.deepcopy([one]) == [one] and asdict(Uploaded("p", one, one))["title"] is one


def test_a_new_child_is_not_stored_where_it_would_not_be_started(codec: TaggedJson) -> None:
    """Only a returned value starts children; an input, an event or a step's result does not."""
    value = Uploaded("p", title.child("x"), report.child("x"))
    with pytest.raises(NotStorableError) as caught:
        codec.encode(value, label="the input")
    assert str(caught.value) == (
        "cannot store the input.title: it is a child of task 'kids_title' that was not started. "
        "A child is started by being returned from a task: return it; or call the task, or start() it."
    )
    with pytest.raises(NotStorableError, match="started by being returned"):
        codec.canonical(value)
    with pytest.raises(NotStorableError, match="started by being returned"):
        pickle.dumps(value)
    codec.identity(value)  # never fails


# --- started --------------------------------------------------------------------------------------------------------------------


def test_encoding_starts_children_in_the_order_of_the_value(codec: TaggedJson, ids: Callable[[], str]) -> None:
    """Each gets an id once, wherever it is in the value, and however often."""
    first, second, third = title.child("1"), report.child("2"), title.child("3")
    with new_children(ids) as children:
        data = codec.encode(Uploaded("p", first, second, [third, first]))
        assert codec.encode(Uploaded("p", first, second, [third, first])) == data  # as on a fresh stack
    assert [id(child) for child in children] == [id(first), id(second), id(third)]
    assert [child.run_id for child in children] == ["run-1", "run-2", "run-3"]
    assert [child.call and child.call.arguments for child in children] == [{"path": str(n)} for n in (1, 2, 3)]
    assert repr(first) == "<child 'kids_title': run run-1>"
    assert len(children) == 3


def test_a_child_is_returned_once(codec: TaggedJson, ids: Callable[[], str]) -> None:
    """Two runs that return the same object would share one child, and nobody asked for that."""
    child = title.child("1")
    with new_children(ids):
        codec.encode([child])
    with new_children(ids), pytest.raises(NotStorableError, match="returned before"):
        codec.encode([child])


@pytest.mark.parametrize("wrap", [list, tuple, lambda value: {"a": value}, lambda value: [[{1: value}]]])
def test_children_are_found_in_containers(
    codec: TaggedJson, ids: Callable[[], str], wrap: Callable[[Any], Any]
) -> None:
    """Lists, tuples, dicts, nested as they may be."""
    value = wrap([title.child("1"), title.child("2")])
    with new_children(ids) as children:
        data = codec.encode(value)
    with found_children() as found:
        decoded = codec.decode(data)
    assert [child.run_id for child in found] == [child.run_id for child in children] == ["run-1", "run-2"]
    assert decoded == value


def test_children_are_found_in_pydantic_models(codec: TaggedJson, ids: Callable[[], str]) -> None:
    """A model may hold one, checks that it is one, and keeps it."""
    pydantic = pytest.importorskip("pydantic")
    model: Any = pydantic.create_model("Model", title=(Child[str], ...), all=(list[Child], ...), __module__=__name__)
    globals()["Model"] = model
    try:
        child = title.child("x")
        value = model(title=child, all=[child, title.child("y")])
        assert value.title is child
        with new_children(ids) as children:
            data = codec.encode(value)
        assert children == [child, value.all[1]]
        assert codec.decode(data) == value
        with pytest.raises(pydantic.ValidationError):
            model(title="x", all=[])
    finally:
        del globals()["Model"]


def test_a_deep_value_starts_each_child_once(codec: TaggedJson) -> None:
    """An encode that runs out of stack goes on in another thread, with what it had started."""
    deep_codec = TaggedJson(PayloadSettings(depth_max=500))
    register_children(deep_codec)
    one, other = title.child("1"), title.child("2")
    value: Any = other
    for _ in range(450):
        value = [value]

    def nested(depth: int) -> bytes:
        return deep_codec.encode([one, value]) if depth == 0 else nested(depth - 1)

    numbers = count(1)
    with new_children(lambda: str(next(numbers))) as children:
        data = nested(600)
    assert [child.run_id for child in children] == ["1", "2"] and next(numbers) == 3
    with found_children() as found:
        deep_codec.decode(data)
    assert found == [one, other]


@pytest.mark.parametrize("name", ["status", "ok", "result", "error"])
def test_a_started_child_has_no_outcome(codec: TaggedJson, name: str) -> None:
    """The id is known, the outcome only to those that waited for it."""
    child = started("r1", codec)
    assert child.run_id == "r1" and repr(child) == "<child: run r1>"
    with pytest.raises(TransitionError, match=r"the outcome of run r1, a child, is not known here.*coordinator"):
        getattr(child, name)


def test_started_children_are_equal_by_run(codec: TaggedJson) -> None:
    """Also one that has ended in the meantime."""
    assert started("r1", codec) == started("r1", codec) == done("r1", codec)
    assert len({started("r1", codec), done("r1", codec), started("r2", codec)}) == 2


def test_what_is_found_is_found_in_the_block_only(codec: TaggedJson) -> None:
    """Ended children are none to be looked for."""
    data = codec.encode([started("r1", codec), done("r2", codec, "x")])
    codec.decode(data)
    with found_children() as found:
        codec.decode(data)
        with found_children() as inner:
            codec.decode(data)
    assert [child.run_id for child in found] == [child.run_id for child in inner] == ["r1"]


# --- ended ----------------------------------------------------------------------------------------------------------------------


def test_a_completed_child_has_a_result(codec: TaggedJson) -> None:
    """It is decoded when it is asked for, once."""
    child = done("r1", codec, Report("x"), task="kids_report")
    assert (child.run_id, child.status, child.ok, child.error) == ("r1", Status.COMPLETED, True, None)
    assert child.result == Report("x") and child.result is child.result
    assert repr(child) == "<child 'kids_report': run r1 is completed>"
    assert done("r2", codec, status=Status.COMPLETED).result is None


def test_a_local_class_is_found_by_the_hint_of_the_task(codec: TaggedJson) -> None:
    """The result is read with what the child's task says that it returns; its coordinator's result, where it has one."""

    @dataclass
    class Local:
        n: int

    async def combine(n: int) -> Local:
        return Local(n)

    combine.__annotations__["return"] = Local  # the name itself cannot be resolved from outside the function

    @task(name="kids_local", on_children_complete=combine)
    async def local() -> int:
        return 1

    data = codec.encode(Local(3), Local)
    assert done("r1", codec, status=Status.COMPLETED, task="kids_local", result=data).result == Local(3)
    lost = done("r2", codec, status=Status.COMPLETED, task="kids_is_gone", result=data)
    assert lost.ok
    with pytest.raises(DecodeError, match="Local"):
        _ = lost.result
    assert local.definition.result_hint is Local


FAILURE = {"error_type": "builtins.ValueError", "message": "no", "traceback": "Traceback ..."}


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"status": Status.FAILED, "failure": FAILURE}, RunFailedError, "is failed after attempt 1"),
        ({"status": Status.TIMED_OUT, "failure": FAILURE}, RunTimedOutError, "is timed_out after attempt 1"),
        ({"status": Status.CHILDREN_FAILED, "failure": FAILURE}, RunFailedError, "is children_failed"),
        (
            {"status": Status.ON_CHILDREN_COMPLETE_FAILED, "failure": FAILURE},
            RunFailedError,
            "is on_children_complete_failed",
        ),
        ({"status": Status.CANCELLED, "reason": "enough"}, RunCancelledError, "was cancelled: enough"),
    ],
)
def test_a_child_that_failed_raises(codec: TaggedJson, fields: Any, kind: Any, text: str) -> None:
    """What `handle.wait()` would raise for its run; also after it was stored in another value."""
    first = done("r1", codec, **fields)
    again = codec.decode(codec.encode([first]))
    assert isinstance(again, list)
    for child in (first, again[0]):
        assert not child.ok and child.status is fields["status"]
        with pytest.raises(kind, match=text) as caught:
            _ = child.result
        assert type(child.error) is kind and str(child.error) == str(caught.value)
        assert caught.value.run_id == "r1"
        if "failure" in fields:
            assert caught.value.error_type == "builtins.ValueError" and caught.value.message == "no"


def test_an_ended_child_is_stored_with_its_outcome(codec: TaggedJson) -> None:
    """It can be the input of a coordinator that is a task, and comes back as it was."""
    value = Uploaded(
        "p", done("r1", codec, 'a "quoted"\ud800 title'), done("r2", codec, Report("x"), task="kids_report")
    )
    again = codec.decode(codec.encode(value))
    assert isinstance(again, Uploaded)
    assert again == value and again.title.result == 'a "quoted"\ud800 title' and again.report.result == Report("x")
    assert codec.encode(again) == codec.encode(value)


def test_outcomes_within_outcomes_do_not_blow_up(codec: TaggedJson) -> None:
    """A result that holds an ended child, whose result holds one ...: each level adds its own size, and no more."""
    value: Any = done("r0", codec, '"' * 100)
    sizes = []
    for level in range(1, 11):
        value = done(f"r{level}", codec, {"inner": value})
        sizes.append(len(codec.encode(value)))
    assert max(after - before for before, after in pairwise(sizes)) < 300
    again: Any = codec.decode(codec.encode(value))
    for _ in range(10):
        again = again.result["inner"]
    assert again.result == '"' * 100


def test_outcomes_are_given_once_and_to_their_run(codec: TaggedJson) -> None:
    """A mistake of the engine would be seen."""
    child = started("r1", codec)
    for run in (ended("r2", codec), ended("r1", codec, status=Status.RUNNING)):
        with pytest.raises(TransitionError, match="cannot take the outcome"):
            child.end(run, codec)
    child.end(ended("r1", codec), codec)
    with pytest.raises(TransitionError, match="cannot take the outcome"):
        child.end(ended("r1", codec), codec)
    with pytest.raises(TransitionError):
        title.child("x").end(ended("r1", codec), codec)


@pytest.mark.parametrize("stored", ["1", "null", "[]", '{"run": "r1"}'])
def test_a_damaged_child_is_a_decode_error(codec: TaggedJson, stored: str) -> None:
    """As any other damaged payload is."""
    with pytest.raises(DecodeError):
        codec.decode(b'{"$":"child","v":%s}' % stored.encode())


def test_an_ended_child_can_go_to_another_process(codec: TaggedJson) -> None:
    """For `@step(isolate="process")`: with its result, and what it tells."""
    child = pickle.loads(pickle.dumps(done("r1", codec, [1, 2])))
    assert child.result == [1, 2] and child.ok and child == done("r1", codec)
    assert codec.encode(child) == codec.encode(done("r1", codec, [1, 2]))
    failed = pickle.loads(pickle.dumps(done("r1", codec, status=Status.CANCELLED)))
    assert isinstance(failed.error, RunCancelledError)
    assert pickle.loads(pickle.dumps(started("r1", codec))) == started("r1", codec)


def test_children_are_inputs(codec: TaggedJson) -> None:
    """A parameter that is annotated as a child, or holds some, takes children and nothing else."""
    child = done("r1", codec, "x")
    takes_children.child(Uploaded("p", child, child), child, [child])
    with pytest.raises(ValidationError) as caught:
        takes_children.child(Uploaded("p", child, "no"), child, [child])  # type: ignore[arg-type]
    assert caught.value.field == "up.report"
    with pytest.raises(ValidationError) as caught:
        takes_children.child(Uploaded("p", child, child), child, [child, 1])  # type: ignore[list-item]
    assert caught.value.field == "several[1]"


# --- in the results of handles --------------------------------------------------------------------------------------------------


class Ended:
    """A host whose runs have all ended."""

    def __init__(self, codec: TaggedJson, runs: list[Run]) -> None:
        self.codec = codec
        self.runs = {run.run_id: run for run in runs}
        self.asked: list[tuple[str, list[str]]] = []

    async def wait_ended(self, run_id: str) -> Run:
        return self.runs[run_id]

    async def end_children(self, run_id: str, children: list[Child[Any]]) -> None:
        self.asked.append((run_id, [child.run_id for child in children]))
        for child in children:
            child.end(self.runs[child.run_id], self.codec)


def handle_of(host: Any, run_id: str) -> Handle[Any]:
    return Handle(host, run_id, None)


async def test_the_children_in_a_result_have_their_outcomes(codec: TaggedJson) -> None:
    """So they have in the results of children, however deep; a result without children asks for nothing."""
    runs = [
        ended("top", codec, [started("a", codec), started("b", codec)]),
        ended("a", codec, {"inner": started("c", codec)}),
        ended("b", codec, status=Status.FAILED, failure=FAILURE),
        ended("c", codec, "deep"),
    ]
    host = Ended(codec, runs)
    a, b = await handle_of(host, "top")
    assert a.result["inner"].result == "deep" and not b.ok
    assert host.asked == [("top", ["a", "b"]), ("a", ["c"])]
    host.asked.clear()
    assert await handle_of(host, "c") == "deep" and host.asked == []
    again: Any = codec.decode(codec.encode(a))
    assert again.result["inner"].result == "deep", "what was resolved is stored with its outcome"


async def test_a_thousand_levels_are_resolved(codec: TaggedJson) -> None:
    """A recursive task needs no stack."""
    runs = [ended(f"r{n}", codec, [started(f"r{n + 1}", codec)]) for n in range(1500)]
    value = await handle_of(Ended(codec, [*runs, ended("r1500", codec, "end")]), "r0")
    for _ in range(1500):
        [child] = value
        value = child.result
    assert value == "end"


async def test_a_child_whose_result_cannot_be_read_spoils_no_other(codec: TaggedJson) -> None:
    """Who asks for that one's result gets the error."""
    data = b'[{"$":"child","v":"x"},{"$":"nobody","v":1}]'
    runs = [
        ended("top", codec, [started("a", codec), started("b", codec)]),
        ended("a", codec, status=Status.COMPLETED, result=data),
        ended("b", codec, 2),
    ]
    a, b = await handle_of(Ended(codec, runs), "top")
    assert a.ok and b.result == 2
    with pytest.raises(DecodeError):
        _ = a.result


# --- coordinators ---------------------------------------------------------------------------------------------------------------


async def combine(ctx: Context, up: Uploaded) -> Report:
    return Report(up.title.result)


@task(name="kids_counting")
async def counting(up: Uploaded) -> int:
    return len(up.more)


@task(name="kids_nested", on_children_complete=counting.options(timeout=5), on_child_failure="continue")
async def nested(path: str) -> Uploaded:
    return Uploaded(path, title.child(path), report.child(path))


def test_a_coordinator_may_be_a_function_or_a_task() -> None:
    """The definition knows which, with what options, and what the run's result is."""

    @task(name="kids_function_coordinates", on_children_complete=combine)
    async def one() -> Uploaded:
        return Uploaded("x", title.child("x"), report.child("x"))

    @task(name="kids_family_coordinates", on_children_complete=nested)
    async def other() -> str:
        return "x"

    coordinator = one.definition.on_children_complete
    assert isinstance(coordinator, FunctionFacts) and coordinator.function is combine and coordinator.takes_context
    assert one.definition.result_hint is Report and one.definition.on_child_failure == "fail"
    assert nested.definition.on_children_complete is counting.definition
    assert nested.definition.coordinator_options == StartOptions(timeout=5.0)
    assert nested.definition.on_child_failure == "continue" and nested.definition.result_hint is int
    assert other.definition.on_children_complete is nested.definition and other.definition.result_hint is int
    assert upload.definition.result_hint is Uploaded and upload.definition.on_children_complete is None


async def _takes_two(up: Uploaded, more: str) -> None: ...


async def _takes_none(ctx: Context) -> None: ...


async def _yields(up: Uploaded) -> AsyncIterator[int]:
    yield 1


def _plain_generator(up: Uploaded) -> Iterator[int]:
    yield 1


@step
def a_step(up: Uploaded) -> int:
    return 1


@pytest.mark.parametrize(
    ("coordinator", "text"),
    [
        (_takes_two, "gets what the task returned, but _takes_two cannot be called with one argument.*'more'"),
        (_takes_none, "_takes_none cannot be called with one argument: too many"),
        (takes_children, "kids_takes|takes_children cannot be called with one argument"),
        (_yields, "make the generator a task"),
        (_plain_generator, "does not support plain generators"),
        (a_step, "make it a task, or plain"),
        (Report, "for functions"),
    ],
)
def test_a_coordinator_that_cannot_be_called_so_is_refused(coordinator: Any, text: str) -> None:
    """When the task is defined, not when its children have ended."""
    with pytest.raises(DefinitionError, match=text):
        task(name="kids_refused", on_children_complete=coordinator)(combine)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("on_children_complete", 5),
        ("on_children_complete", "combine"),
        ("on_child_failure", "ignore"),
        ("on_child_failure", None),
    ],
)
def test_a_wrong_setting_of_a_family_names_its_key(key: str, value: Any) -> None:
    """As for every other setting."""
    with pytest.raises(ConfigError) as caught:
        task(name="kids_refused", **{key: value})(combine)
    assert caught.value.key == key

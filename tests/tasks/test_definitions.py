"""`@task` and `@step` on functions of every kind: names, clashes, and settings that are refused."""

from __future__ import annotations

import gc
import sys
import types
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from durable import (
    ConfigError,
    Context,
    DefinitionError,
    DuplicateStepError,
    DuplicateTaskError,
    Durable,
    NonRetryableError,
    Retry,
    RunFailedError,
    step,
    task,
)
from durable.tasks.registry import find_task


async def double(n: int) -> int:
    return n * 2


def shout(word: str) -> str:
    return word.upper()


class Adder:
    """A callable object, with attributes called like those of a task."""

    definition = "its own"

    def __init__(self) -> None:
        self.start_options = "its own, too"

    async def __call__(self, ctx: Context, n: int) -> int:
        return n + ctx.attempt


optioned = task(name="optioned")(double)


# --- names ----------------------------------------------------------------------------------------------------------------------


def test_a_task_goes_by_the_name_of_its_function() -> None:
    """Names default to `__name__`, documentation and module stay the function's."""

    @task
    async def welcome(name: str) -> str:
        """Say hello."""
        return name

    assert welcome.name == "welcome"
    assert welcome.__doc__ == "Say hello."  # type: ignore[attr-defined]
    assert repr(welcome) == "<task 'welcome'>"
    assert find_task("welcome") is welcome.definition
    assert repr(step(double)) == "<step 'double'>"


@pytest.mark.parametrize("decorate", [task, step])
@pytest.mark.parametrize("function", [lambda n: n, partial(double, 1), Adder()], ids=["lambda", "partial", "object"])
def test_a_function_without_a_name_needs_one(decorate: Any, function: Any) -> None:
    """Nothing could find the code again after a restart, so the error asks for `name=`."""
    with pytest.raises(ConfigError, match="name=") as caught:
        decorate(function)
    assert caught.value.key == "name"


async def test_functions_without_a_name_run_under_a_given_one(app: Durable) -> None:
    """A lambda, a partial and a callable object are as good as any other function."""
    add = task(name="add")(Adder())
    times = task(name="times")(partial(double))
    words = task(name="words")(lambda word: word * 2)
    assert await (await app.start(add, 3)) == 4
    assert await (await app.start(times, 3)) == 6
    assert await (await app.start(words, "ab")) == "abab"
    assert await step("add", Adder())(3) == 4


async def test_a_partial_keeps_the_context_and_the_annotations_of_its_function(app: Durable) -> None:
    """The context is supplied and inputs are checked as for the function inside."""

    async def scaled(ctx: Context, n: int, *, factor: int) -> int:
        return n * factor * ctx.attempt

    tripled = task(name="tripled")(partial(scaled, factor=3))
    assert await (await app.start(tripled, 2)) == 6
    with pytest.raises(ValueError, match="n"):
        await app.start(tripled, "2")


@pytest.mark.parametrize("name", ["", " padded ", "a\nb", "x" * 201, 5])
def test_a_name_that_cannot_be_stored_is_refused(name: Any) -> None:
    """A name is 1 to 200 printable characters without spaces around them."""
    for decorate in (task(name=name), step(name=name)):
        with pytest.raises(ConfigError) as caught:
            decorate(double)
        assert caught.value.key == "name"


def test_nested_functions_are_tasks_under_their_own_name() -> None:
    """A local function has a name, and needs no other."""

    @task
    async def nested_one() -> None: ...

    assert nested_one.name == "nested_one"


@pytest.mark.parametrize("thing", [5, "read", Adder, staticmethod(double), classmethod(double)])
def test_only_functions_can_be_decorated(thing: Any) -> None:
    """A class, a static method or a value is refused when it is decorated, not when it is run."""
    for decorate in (task(name="thing"), step(name="thing")):
        with pytest.raises(DefinitionError):
            decorate(thing)


def test_plain_generators_are_refused() -> None:
    """Only async generators can yield events; the error says what to do."""

    def numbers() -> Iterator[int]:
        yield 1

    async def async_numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(DefinitionError, match="async"):
        task(numbers)
    with pytest.raises(DefinitionError, match="async"):
        step(numbers)
    with pytest.raises(ConfigError, match="one value"):
        step(async_numbers)


def test_what_is_decorated_already_is_refused() -> None:
    """A task of a step, or a step of a task, would hide who records what."""
    wrapped = step(double)
    job = task(name="decorated once")(double)
    for decorate in (task(name="twice"), step(name="twice")):
        for thing in (wrapped, job):
            with pytest.raises(DefinitionError, match="already"):
                decorate(thing)


async def test_a_method_can_be_a_step(app: Durable) -> None:
    """It is bound like a function, its instance is the first argument of the call."""

    @task
    async def uses_a_method(word: str) -> str:
        return await Greeter("hello ").greet(word)

    assert await (await app.start(uses_a_method, "ann")) == "hello ann"
    assert await Greeter("hi ").greet("bob") == "hi bob"
    assert Greeter.greet.definition.name == "greet"


class Greeter(dict[str, str]):
    """A value that can be stored, so that it can be the argument of a step."""

    def __init__(self, greeting: str = "") -> None:
        super().__init__(greeting=greeting)

    @step
    async def greet(self, word: str) -> str:
        return self["greeting"] + word


# --- clashes --------------------------------------------------------------------------------------------------------------------


def test_two_functions_of_one_task_name_clash() -> None:
    """A stored run has one name to find its code by, so the second function is refused and the first stays."""

    async def one() -> None: ...
    async def other() -> None: ...

    first = task(name="clashing")(one)
    with pytest.raises(DuplicateTaskError, match=r"one.*other.*name="):
        task(name="clashing")(other)
    assert find_task("clashing") is first.definition


def test_two_partials_of_one_task_name_clash_by_their_functions() -> None:
    """A partial is told apart by the function inside it."""
    first = task(name="partial clash")(partial(double))
    with pytest.raises(DuplicateTaskError):
        task(name="partial clash")(partial(shout))
    assert find_task("partial clash") is first.definition


SOURCE = """
from durable import task

@task
async def reloaded():
    return {n}

@task(retry=2)
async def reloaded_with_arguments():
    return {n}
"""


def test_the_same_function_again_replaces_the_former_with_a_warning() -> None:
    """A reloader or a notebook cell defines a function again: the new code counts, and the warning points at it."""
    module = types.ModuleType("reloaded_module")
    sys.modules["reloaded_module"] = module
    try:
        exec(compile(SOURCE.format(n=1), "cell.py", "exec"), module.__dict__)
        former = module.reloaded
        with pytest.warns(UserWarning, match="defined again") as caught:
            exec(compile(SOURCE.format(n=2), "cell.py", "exec"), module.__dict__)
    finally:
        del sys.modules["reloaded_module"]
    assert find_task("reloaded") is module.reloaded.definition is not former.definition
    assert [(each.filename, each.lineno) for each in caught] == [("cell.py", 4), ("cell.py", 8)]


def test_local_functions_that_are_gone_do_not_clash() -> None:
    """Definitions are held weakly: a test's local task is gone with the test, also where it is part of a cycle."""

    def one() -> None:
        @task
        async def passing(n: int) -> int:
            return 0 if n == 0 else await passing(n - 1)

    def other() -> None:
        @task
        async def passing(n: int) -> int:
            return 1 if n == 0 else await passing(n - 1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one()
        one()
        other()
    gc.collect()
    assert find_task("passing") is None


async def test_two_step_functions_of_one_name_in_a_run_clash(app: Durable) -> None:
    """Their recorded results could not be told apart."""

    async def one() -> int:
        return 1

    async def other() -> int:
        return 2

    steps = [step("same", one), step("same", other)]

    @task
    async def calls_both() -> list[int]:
        return [await each() for each in steps]

    assert await calls_both() == [1, 2]  # outside a run they are plain functions
    with pytest.raises(RunFailedError, match="same") as caught:
        await (await app.start(calls_both))
    assert caught.value.error_type == "durable.errors.DuplicateStepError"
    assert issubclass(DuplicateStepError, DefinitionError)


async def test_one_function_may_be_wrapped_twice_under_one_name(app: Durable) -> None:
    """`step(fn)` at each use is the same step, and two names for one function are two steps."""

    @task
    async def wraps() -> int:
        return await step(double)(1) + await step(double)(2) + await step("twice", double)(3)

    handle = await app.start(wraps)
    assert await handle == 12
    names = [event.data["step"] async for event in handle.events(steps=True) if event.name == "step:completed"]
    assert names == ["double", "double", "twice"]


async def test_steps_of_one_name_in_different_runs_do_not_clash(app: Durable) -> None:
    """Only within one run has a name to be one function."""

    async def one() -> int:
        return 1

    async def other() -> int:
        return 2

    async def body(function: Callable[[], Any]) -> int:
        return int(await step("same here", function)())

    @task
    async def first_run() -> int:
        return await body(one)

    @task
    async def second_run() -> int:
        return await body(other)

    assert (await (await app.start(first_run)), await (await app.start(second_run))) == (1, 2)


# --- settings -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", "60"),
        ("timeout", True),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", timedelta(0)),
        ("delay", -1),
        ("delay", "1"),
        ("priority", 1001),
        ("priority", "high"),
        ("priority", True),
        ("max_recoveries", -1),
        ("max_recoveries", 1.5),
        ("key", 5),
        ("key", ""),
        ("key", "k" * 501),
        ("recovery", 5),
        ("validate", "yes"),
        ("auto_recover", "no"),
    ],
)
def test_a_wrong_setting_of_a_task_names_its_key(key: str, value: Any) -> None:
    """It is refused where it is written, with `.key` for tools."""
    with pytest.raises(ConfigError, match=key) as caught:
        task(name="wrong", **{key: value})(double)
    assert caught.value.key == key
    assert find_task("wrong") is None


@pytest.mark.parametrize("key", ["key", "user"])
@pytest.mark.parametrize("value", [5, "", "k" * 501])
def test_a_key_or_user_that_cannot_be_stored_is_refused(key: str, value: Any) -> None:
    """Both are 1 to 500 characters."""
    with pytest.raises(ConfigError) as caught:
        optioned.options(**{key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(("key", "value"), [("timeout", 0), ("delay", -1), ("priority", 2.5), ("timeout", "1")])
def test_a_wrong_option_of_a_start_names_its_key(key: str, value: Any) -> None:
    """What a task refuses as a setting it refuses as an option."""
    with pytest.raises(ConfigError) as caught:
        optioned.options(**{key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "value"), [("timeout", 0), ("codec", "yaml"), ("isolate", "thread"), ("isolate", True)]
)
def test_a_wrong_setting_of_a_step_names_its_key(key: str, value: Any) -> None:
    """As for tasks."""
    with pytest.raises(ConfigError) as caught:
        step(name="wrong", **{key: value})(double)  # type: ignore[call-overload]
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("max_attempts", {"max_attempts": 0}),
        ("max_attempts", {"max_attempts": True}),
        ("max_attempts", {"max_attempts": "3"}),
        ("factor", {"max_attempts": 2, "factor": 0.5}),
        ("jitter", {"max_attempts": 2, "jitter": 1.5}),
        ("unless", {"max_attempts": 2, "unless": ("ValueError",)}),
        ("unless", {"max_attempts": 2, "unless": ValueError("x")}),
    ],
)
def test_a_wrong_retry_names_its_key(key: str, arguments: dict[str, Any]) -> None:
    """A policy is checked when it is made."""
    with pytest.raises(ConfigError) as caught:
        Retry(**arguments)
    assert caught.value.key == key


def test_a_number_of_attempts_is_short_for_a_retry() -> None:
    """`retry=3` is three attempts in all, the first included."""
    assert task(retry=3, name="thrice")(double).definition.retry == Retry(3)
    assert step(retry=3)(double).definition.retry == Retry(3)
    assert task(name="once")(double).definition.retry.max_attempts == 1
    with pytest.raises(ConfigError):
        task(retry=0, name="never")(double)


def test_durations_are_seconds_or_timedeltas() -> None:
    """Both mean the same everywhere."""
    definition = task(name="timed for a minute", timeout=timedelta(minutes=1), delay=timedelta(seconds=2))(
        double
    ).definition
    assert (definition.timeout, definition.delay) == (60.0, 2.0)
    assert step(timeout=timedelta(seconds=5))(double).definition.timeout == 5.0
    assert Retry(2, delay=timedelta(seconds=3), max_delay=timedelta(minutes=1)) == Retry(2, delay=3, max_delay=60)
    options = (
        task(name="timed too")(double).options(timeout=timedelta(seconds=1), delay=timedelta(seconds=2)).start_options
    )
    assert (options.timeout, options.delay) == (1.0, 2.0)


def test_unless_takes_one_class_or_several() -> None:
    """One class needs no tuple; a `NonRetryableError` is never retried."""
    assert Retry(2, unless=ValueError).unless == (ValueError,)
    policy = Retry(2, unless=(ValueError, KeyError))
    assert not policy.allows(UnicodeError())
    assert not policy.allows(NonRetryableError())
    assert policy.allows(OSError())


def test_options_are_immutable_and_add_up() -> None:
    """`options()` returns another object: what was set before stays, what is given again replaces."""
    plain = task(name="merging")(double)
    keyed = plain.options(key="k", user="ann")
    both = keyed.options(timeout=5, user="bob", retry=2, priority=3)
    assert plain.start_options.key is None
    assert (keyed.start_options.user, keyed.start_options.timeout) == ("ann", None)
    assert (both.start_options.key, both.start_options.user, both.start_options.timeout) == ("k", "bob", 5.0)
    assert (both.start_options.retry, both.start_options.priority) == (Retry(2), 3)
    assert both.definition is plain.definition
    with pytest.raises(AttributeError):
        both.start_options.key = "other"  # type: ignore[misc]


async def test_options_reach_the_run(app: Durable) -> None:
    """What was given for one start is what the run has."""
    job = task(name="reaching", priority=1, version=7)(double)
    info = await (await app.start(job.options(key="k", user="ann", retry=4, priority=9), 1)).info()
    assert (info.key, info.user, info.max_attempts, info.priority, info.version) == ("k", "ann", 4, 9, "7")
    assert (await (await app.start(job, 1)).info()).priority == 1

"""Wrong definitions, options and settings: each marked line has to be refused, as its comment says, by mypy and by pyright."""

from __future__ import annotations

from datetime import timedelta

import durable
from durable import (
    BackpressureError,
    Config,
    ConfigError,
    Context,
    Durable,
    Limits,
    Retry,
    RunFailedError,
    RunInfo,
    UserContext,
    ValidationError,
    current_user,
    run_as,
    step,
    task,
)
from durable.config import LogSettings


@task
async def add(a: int, b: int = 0) -> int:
    return a + b


def read(path: str) -> int:
    return len(path)


def definitions() -> None:
    task(timeout="60s")  # type: ignore[call-overload]  # reportArgumentType
    task(retry="3")  # type: ignore[call-overload]  # reportArgumentType
    task(nam="x")  # type: ignore[call-overload]  # reportCallIssue
    task(key=5)  # type: ignore[call-overload]  # reportArgumentType
    task(priority="high")  # type: ignore[call-overload]  # reportArgumentType
    task(auto_recover="no")  # type: ignore[call-overload]  # reportArgumentType
    task(recovery=True)  # type: ignore[call-overload]  # reportArgumentType
    task(validate=3)  # type: ignore[call-overload]  # reportArgumentType
    task("add")  # type: ignore[call-overload]  # reportArgumentType
    step(timeout="20s")  # type: ignore[call-overload]  # reportArgumentType
    step(codec="yaml")  # type: ignore[call-overload]  # reportArgumentType
    step(isolate="thread")  # type: ignore[call-overload]  # reportArgumentType
    step(key="k")  # type: ignore[call-overload]  # reportCallIssue
    step(1, read)  # type: ignore[call-overload]  # reportArgumentType
    step("read", "path")  # type: ignore[call-overload]  # reportArgumentType


def options() -> None:
    add.options(key=5)  # type: ignore[arg-type]  # reportArgumentType
    add.options(user=5)  # type: ignore[arg-type]  # reportArgumentType
    add.options(timeout="1m")  # type: ignore[arg-type]  # reportArgumentType
    add.options(retry=1.5)  # type: ignore[arg-type]  # reportArgumentType
    add.options(delay="1s")  # type: ignore[arg-type]  # reportArgumentType
    add.options(priority="1")  # type: ignore[arg-type]  # reportArgumentType
    add.options("key")  # type: ignore[call-arg]  # reportCallIssue
    add.options(name="x")  # type: ignore[call-arg]  # reportCallIssue
    add.name = "x"  # type: ignore[misc]  # reportAttributeAccessIssue


def settings() -> None:
    Retry()  # type: ignore[call-arg]  # reportCallIssue
    Retry("3")  # type: ignore[arg-type]  # reportArgumentType
    Retry(3, delay="1s")  # type: ignore[arg-type]  # reportArgumentType
    Retry(3, unless=ValueError("x"))  # type: ignore[arg-type]  # reportArgumentType
    Retry(3, backoff=2)  # type: ignore[call-arg]  # reportCallIssue
    Retry(3).max_attempts = 4  # type: ignore[misc]  # reportAttributeAccessIssue
    Limits(max_running="10")  # type: ignore[arg-type]  # reportArgumentType
    Limits(10)  # type: ignore[call-arg]  # reportCallIssue
    Limits(max_runing=10)  # type: ignore[call-arg]  # reportCallIssue
    Limits().max_running = 10  # type: ignore[misc]  # reportAttributeAccessIssue
    Config(log=Limits())  # type: ignore[arg-type]  # reportArgumentType
    Config(LogSettings())  # type: ignore[call-arg]  # reportCallIssue
    Config(log=LogSettings(segment_bytes="16M"))  # type: ignore[arg-type]  # reportArgumentType
    Durable(limits=5)  # type: ignore[arg-type]  # reportArgumentType
    Durable(config=Limits())  # type: ignore[arg-type]  # reportArgumentType
    Durable(5)  # type: ignore[arg-type]  # reportArgumentType
    Durable("x", execute="no")  # type: ignore[arg-type]  # reportArgumentType
    Durable("x", Limits())  # type: ignore[call-arg]  # reportCallIssue


async def opening() -> None:
    with Durable():  # type: ignore[attr-defined]  # reportGeneralTypeIssues
        pass
    app = Durable()
    await app.get(1)  # type: ignore[arg-type]  # reportArgumentType
    async for info in app.runs(status=1):  # type: ignore[arg-type]  # reportArgumentType
        info.result  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    async for info in app.runs(task=read):  # type: ignore[arg-type]  # reportArgumentType
        print(info)
    await app.dead_letters.retry(RunInfo)  # type: ignore[arg-type]  # reportArgumentType
    await app.find(None)  # type: ignore[arg-type]  # reportArgumentType


async def bodies(ctx: Context) -> None:
    await durable.sleep("1s")  # type: ignore[arg-type]  # reportArgumentType
    async with durable.timeout("1s"):  # type: ignore[arg-type]  # reportArgumentType
        pass
    with durable.timeout(1):  # type: ignore[attr-defined]  # reportGeneralTypeIssues
        pass
    await durable.now()  # type: ignore[misc]  # reportGeneralTypeIssues
    durable.random().upper()  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    durable.uuid4() + 1  # type: ignore[operator]  # reportOperatorIssue
    await ctx.wait_for(3)  # type: ignore[arg-type]  # reportArgumentType
    await ctx.wait_for("x", timeout="1s")  # type: ignore[arg-type]  # reportArgumentType
    ctx.attempt.upper()  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    ctx.user.upper()  # type: ignore[union-attr]  # reportOptionalMemberAccess
    ctx.no_such_thing  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    ctx.emit_nowait("x", ephemeral=True)  # type: ignore[call-overload]  # reportCallIssue


def identities() -> None:
    run_as("ann")  # type: ignore[arg-type]  # reportArgumentType
    with run_as("ann"):  # type: ignore[arg-type]  # reportArgumentType
        pass
    UserContext()  # type: ignore[call-arg]  # reportCallIssue
    UserContext("ann", "secret")  # type: ignore[arg-type]  # reportArgumentType
    UserContext("ann").user = "bob"  # type: ignore[misc]  # reportAttributeAccessIssue
    current_user().user  # type: ignore[union-attr]  # reportOptionalMemberAccess


def errors() -> None:
    ValidationError("wrong")  # type: ignore[call-arg]  # reportCallIssue
    BackpressureError(retry_after="1")  # type: ignore[arg-type]  # reportArgumentType
    BackpressureError(retry_after=timedelta(seconds=1))  # type: ignore[arg-type]  # reportArgumentType
    ConfigError("wrong").field  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    RunFailedError().retry_after  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    ValidationError("wrong", field="n").field + 1  # type: ignore[operator]  # reportOperatorIssue

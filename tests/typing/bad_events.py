"""Wrong events: each marked line has to be refused, as its comment says, by mypy and by pyright."""

from __future__ import annotations

from dataclasses import dataclass

from durable import Context, task


@dataclass
class Tick:
    n: int


@dataclass
class Done:
    total: int


@dataclass
class Other:
    n: int


@task
async def typed(ctx: Context[Tick | Done]) -> None:
    await ctx.emit(Other(1))  # type: ignore[call-overload]  # reportArgumentType
    await ctx.emit(3)  # type: ignore[call-overload]  # reportArgumentType
    await ctx.emit(Tick)  # type: ignore[call-overload]  # reportArgumentType
    await ctx.emit(Tick(1), {"n": 3})  # type: ignore[call-overload]  # reportArgumentType
    await ctx.emit({"n": 3}, "tick")  # type: ignore[call-overload]  # reportArgumentType
    await ctx.emit(Tick("1"))  # type: ignore[arg-type]  # reportArgumentType
    await ctx.emit(Tick(1), durable=True)  # type: ignore[call-overload]  # reportCallIssue
    await ctx.emit(Tick(1), ephemeral="yes")  # type: ignore[call-overload]  # reportArgumentType
    await ctx.emit()  # type: ignore[call-overload]  # reportCallIssue
    ctx.emit_nowait(Other(1))  # type: ignore[call-overload]  # reportArgumentType
    ctx.emit_nowait(Tick(1), {"n": 3})  # type: ignore[call-overload]  # reportArgumentType
    ctx.emit(Tick(1)).done()  # type: ignore[attr-defined]  # reportAttributeAccessIssue


@task
async def single(ctx: Context[Tick], n: int) -> int:
    await ctx.emit(Done(n))  # type: ignore[call-overload]  # reportArgumentType
    await only_done(ctx)  # type: ignore[arg-type]  # reportArgumentType
    return n


async def only_done(ctx: Context[Done]) -> None:
    await ctx.emit(Done(1))


@task
async def past(ctx: Context[Tick | Done]) -> int:
    done: list[Done] = ctx.past(Tick)  # type: ignore[arg-type]  # reportAssignmentType
    print(done)
    ctx.past("Tick")  # type: ignore[arg-type]  # reportArgumentType
    ctx.past(Tick(1))  # type: ignore[arg-type]  # reportArgumentType
    ctx.past(Tick)[0].total  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    return len(ctx.past())  # type: ignore[call-arg]  # reportCallIssue

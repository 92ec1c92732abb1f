"""Waiting for a person: a run that waits for a decision, for hours or days, also while no process runs.

    python examples/approval.py request expense-7 250     # starts the run, and ends
    durable show expense-7                                # it waits
    python examples/approval.py decide expense-7 yes      # another process, later: sends the decision, and the run goes on

`ctx.wait_for(name)` waits for `handle.send(name, data)`. What is sent is durable and kept until the run takes it.
"""

import asyncio
import sys

from durable import Context, Durable, RunNotFoundError, step, task


@step
async def reserve(amount: int) -> str:
    print(f"reserving {amount}", flush=True)
    return f"reservation of {amount}"


@step
async def pay_out(reservation: str, approver: str) -> str:
    return f"{reservation}: paid out, approved by {approver}"


@step
async def give_back(reservation: str, approver: str) -> str:
    return f"{reservation}: given back, refused by {approver}"


@task
async def expense(ctx: Context, amount: int) -> str:
    reservation = await reserve(amount)
    decision = await ctx.wait_for("decision", timeout=30 * 24 * 3600)
    settle = pay_out if decision["approved"] else give_back
    return await settle(reservation, decision["by"])


async def request(key: str, amount: int) -> None:
    async with Durable() as app:
        handle = await app.start(expense.options(key=key), amount)
        async for event in handle.events():
            if event.name in ("waiting", "completed"):
                print(f"{key} is {event.name}")
                return


async def decide(key: str, approved: bool) -> None:
    async with Durable() as app:
        handle = await app.find(key)
        if handle is None:
            raise RunNotFoundError(f"no expense was requested under {key!r}")
        await handle.send("decision", {"approved": approved, "by": "Ada"})
        print(await handle)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["request", key, amount]:
            asyncio.run(request(key, int(amount)))
        case ["decide", key, ("yes" | "no") as answer]:
            asyncio.run(decide(key, answer == "yes"))
        case _:
            sys.exit(__doc__)

"""Polling: asking an outside service again and again until it is done, in two ways.

    python examples/polling.py

`render_in_a_loop` is a plain loop with `durable.sleep`: one run. Its sleeps are recorded, so a crash neither repeats nor lengthens
them, and a run that sleeps for long needs no memory. `render_step_by_step` returns itself as a child that begins later (`delay=`):
each look is a run of its own, with its own retries, and the history of none of them grows.

The service is a file here: an order that is done some time after it was placed, whoever asks, also over a crash.
"""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import durable
from durable import Child, Durable, step, task

EVERY = timedelta(seconds=0.1)
RENDER_SECONDS = 0.5


@step
def place_order(film: str) -> str:
    order = Path(f"{film}.order")
    if not order.exists():  # placing it twice must not begin it anew
        order.write_text(str(time.time()))
    print(f"ordered {film}", flush=True)
    return str(order)


@step
def look(order: str) -> str | None:
    """The film, if it is rendered by now."""
    age = time.time() - float(Path(order).read_text())
    print(f"  {order} is {age:.1f} s old", flush=True)
    return order.replace(".order", ".mp4") if age >= RENDER_SECONDS else None


# --- as a loop ------------------------------------------------------------------------------------------------------------------


@task
async def render_in_a_loop(film: str) -> str:
    order = await place_order(film)
    while (rendered := await look(order)) is None:
        await durable.sleep(EVERY)
    return rendered


# --- as a recursion -------------------------------------------------------------------------------------------------------------


async def take_over(found: Child[str] | str) -> str:
    return found if isinstance(found, str) else found.result


@task(on_children_complete=take_over)
async def look_until_rendered(order: str) -> Child[str] | str:
    rendered = await look(order)
    return rendered or look_until_rendered.options(delay=EVERY).child(order)


@task(on_children_complete=take_over)
async def render_step_by_step(film: str) -> Child[str] | str:
    return look_until_rendered.child(await place_order(film))


async def main() -> None:
    async with Durable() as app:
        print("a loop in one run:")
        handle = await app.start(render_in_a_loop.options(key="loop"), "first-film")
        print(f"{await handle}\n")
        print("a run for each look:")
        handle = await app.start(render_step_by_step.options(key="steps"), "second-film")
        print(await handle)
        looks = [info async for info in app.runs(task=look_until_rendered)]
        print(f"it took {len(looks)} runs, each the child of the one before")


if __name__ == "__main__":
    asyncio.run(main())

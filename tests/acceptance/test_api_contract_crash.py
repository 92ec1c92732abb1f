"""The contract where it speaks of crashes: programs that are killed with SIGKILL and run again, tasks in `__main__`."""

from __future__ import annotations

import json
from ast import literal_eval
from pathlib import Path

from tests.acceptance.contract_support import lives


def test_a_recorded_step_does_not_run_again(tmp_path: Path) -> None:
    """Its typed result comes back; the context tells that it was recovered, and why; the attempt is the same."""
    output, notes = lives(
        tmp_path,
        """
        @dataclass
        class Page:
            url: str

        @step
        async def fetch(url: str) -> Page:
            note("fetch")
            return Page(url)

        @step
        async def second(page: Page) -> str:
            note("second")
            if LIFE == 1:
                die()
            return page.url

        @task
        async def crawl(ctx: Context, url: str):
            page = await fetch(url)
            return [type(page).__name__, await second(page), ctx.attempt, ctx.recovered, ctx.recovery_reason]

        async def main():
            async with Durable(FOLDER) as app:
                handle = await crawl.options(key="k").start("u")
                print(json.dumps(await handle))
                print([event.name async for event in handle.events()])
        """,
    )
    result, names = output.splitlines()
    assert json.loads(result) == ["Page", "u", 1, True, "crash"]
    assert notes == ["fetch", "second", "second"]
    assert literal_eval(names) == ["created", "started", "recovered", "completed"]


def test_a_body_may_branch_on_recovered(tmp_path: Path) -> None:
    """It may emit and call what it did not before, and leave out what it did; recorded calls that it repeats are not repeated."""
    output, notes = lives(
        tmp_path,
        """
        @step
        async def work(n: int) -> int:
            note(f"work {n}")
            return n

        @step
        async def prepare() -> None:
            note("prepare")

        @step
        async def clean_up() -> None:
            note("clean up")

        @task
        async def body(ctx: Context):
            if ctx.recovered:
                await ctx.emit("resuming", {"reason": ctx.recovery_reason})
                await clean_up()
            else:
                await ctx.emit("fresh")
                await prepare()
            for n in range(3):
                await ctx.emit("tick", await work(n))
                if LIFE == 1 and n == 1:
                    die()
            return "done"

        async def main():
            async with Durable(FOLDER) as app:
                handle = await body.options(key="k").start()
                print(await handle.wait(timeout=20))
                print([(event.name, event.data) async for event in handle.events() if event.name in ("tick", "resuming", "fresh")])
        """,
    )
    result, events = output.splitlines()
    assert result == "done"
    assert literal_eval(events) == [
        ("fresh", None), ("tick", 0), ("tick", 1), ("resuming", {"reason": "crash"}), ("tick", 2),
    ]  # fmt: skip
    assert notes == ["prepare", "work 0", "work 1", "clean up", "work 2"]


def test_what_was_emitted_is_not_emitted_again(tmp_path: Path) -> None:
    """By `emit`, `emit_nowait` and a generator that starts over; the logger, too, is silent about what it said; a subscriber resumes."""
    output, notes = lives(
        tmp_path,
        """
        import logging

        class Notes(logging.Handler):
            def emit(self, record):
                note("log " + record.getMessage())

        logging.getLogger("durable.task").addHandler(Notes())
        logging.getLogger("durable.task").setLevel("INFO")

        @dataclass
        class Tick:
            n: int

        @step
        async def work(n: int) -> int:
            if LIFE == 1 and n == 2:
                die()
            return n

        @task
        async def ticks(ctx: Context, n: int):
            for i in range(n):
                ctx.logger.info(str(i))
                ctx.emit_nowait("soon", i)
                yield Tick(await work(i))
            yield Result("end")

        async def main():
            async with Durable(FOLDER) as app:
                handle = await ticks.options(key="k").start(4)
                seen = [line for line in open(FOLDER + ".notes")] if LIFE == 2 else []
                after = max([int(line.split()[1]) for line in seen if line.startswith("seq")], default=0)
                async for event in handle.events(after=after):
                    note(f"seq {event.seq} {event.name} {event.data.n if event.name == 'Tick' else event.data}")
                print(await handle)
        """,
    )
    assert output.strip() == "end"
    assert [line for line in notes if line.startswith("log")][:2] == ["log 0", "log 1"]
    assert [notes.count(f"log {n}") for n in (0, 1, 3)] == [1, 1, 1]
    seen = [line.split() for line in notes if line.startswith("seq")]
    assert [int(seq) for _, seq, *_ in seen] == sorted({int(seq) for _, seq, *_ in seen})
    assert [value for _, _, name, value in (line[:4] for line in seen) if name == "Tick"] == ["0", "1", "2", "3"]
    assert [value for _, _, name, value in (line[:4] for line in seen) if name == "soon"] == ["0", "1", "2", "3"]


def test_a_generator_that_looks_at_the_past_goes_on(tmp_path: Path) -> None:
    """`ctx.past(Tick)` tells how far it came."""
    output, notes = lives(
        tmp_path,
        """
        @dataclass
        class Tick:
            n: int

        @task
        async def ticks(ctx: Context, n: int):
            for i in range(len(ctx.past(Tick)), n):
                note(str(i))
                if LIFE == 1 and i == 2:
                    die()
                yield Tick(i)

        async def main():
            async with Durable(FOLDER) as app:
                handle = await ticks.options(key="k").start(4)
                await handle
                print([event.data.n async for event in handle.events() if event.name == "Tick"])
        """,
    )
    assert literal_eval(output) == [0, 1, 2, 3]
    assert notes == ["0", "1", "2", "2", "3"]


def test_a_recovery_handler(tmp_path: Path) -> None:
    """It runs instead of the body after a crash, with the input, and gives the result, or `RERUN` for the body again."""
    output, notes = lives(
        tmp_path,
        """
        def handler(ctx: Context, n: int):
            note(f"handler {n} {ctx.recovered} {ctx.recovery_reason}")
            return RERUN if n == 2 else "handled"

        @task(recovery=handler)
        async def body(ctx: Context, n: int):
            await ctx.emit("begun")
            note(f"body {n}")
            if LIFE == 1 and n == 2:
                die()
            if LIFE == 1:
                await asyncio.sleep(60)
            return "body"

        async def main():
            async with Durable(FOLDER) as app:
                first = await body.options(key="1").start(1)
                async for event in first.events():
                    if event.name == "begun":
                        break
                second = await body.options(key="2").start(2)
                print([await first, await second])
        """,
    )
    assert literal_eval(output) == ["handled", "body"]
    assert sorted(note for note in notes if note.startswith("handler")) == [
        "handler 1 True crash",
        "handler 2 True crash",
    ]
    assert notes.count("body 2") == 2


def test_signals_sleep_and_time_over_a_crash(tmp_path: Path) -> None:
    """What was sent before is there, received or not; a sleep is not begun anew; `now`, `uuid4` and `random` are the same."""
    output, notes = lives(
        tmp_path,
        """
        import time

        @task
        async def body(ctx: Context):
            begun = durable.now()
            note(f"{begun} {durable.uuid4()} {durable.random()}")
            first = await ctx.wait_for("a")
            await durable.sleep(timedelta(seconds=0.6))
            slept = time.time() - begun.timestamp()
            return [first, await ctx.wait_for("b"), await ctx.wait_for("c"), 0.6 <= slept < 20]

        async def main():
            async with Durable(FOLDER) as app:
                handle = await body.options(key="k").start()
                if LIFE == 1:
                    await handle.send("b", {"x": 1})
                    await handle.send("a", 1)
                    async for event in handle.events(steps=True):
                        if isinstance(event.data, dict) and event.data.get("until"):
                            die()  # it sleeps
                await handle.send("c", "3")
                print(json.dumps(await handle))
        """,
    )
    assert json.loads(output) == [1, {"x": 1}, "3", True]
    assert len(notes) == 2 and notes[0] == notes[1]


def test_errors_children_and_starts_over_a_crash(tmp_path: Path) -> None:
    """A failed step raises its class again without running, a child and a started run are started once."""
    output, notes = lives(
        tmp_path,
        """
        class Declined(Exception):
            def __init__(self, code):
                super().__init__(code)
                self.code = code

        @step
        async def pay():
            note("pay")
            raise Declined(7)

        @task
        async def child(n: int):
            note(f"child {n}")
            return n

        @step
        async def last():
            if LIFE == 1:
                die()

        @task
        async def parent():
            try:
                await pay()
            except Declined as error:
                code = error.code
            own = await child.start(2)
            found = [code, await child(1), await own]
            await last()
            return found

        async def main():
            async with Durable(FOLDER) as app:
                print(await (await parent.options(key="k").start()))
                print(len([info async for info in app.runs()]))
        """,
    )
    assert output.splitlines() == ["[7, 1, 2]", "3"]
    assert sorted(notes) == ["child 1", "child 2", "pay"]


def test_code_that_diverges_is_shown(tmp_path: Path) -> None:
    """The run is suspended with record and code side by side, file and line; once mended it goes on where it was."""
    output, notes = lives(
        tmp_path,
        """
        @step
        async def fetch(n: int):
            note(f"fetch {n}")
            return n

        @step
        async def last():
            if LIFE == 1:
                die()

        @task
        async def body():
            found = await fetch(5 if LIFE == 2 and not mended else 1)
            await last()
            return found

        async def main():
            global mended
            mended = False
            async with Durable(FOLDER) as app:
                handle = await body.options(key="k").start()
                async for event in handle.events():
                    if event.name == "suspended":
                        break
                info = await handle.info()
                print(info.status, info.error_type)
                print(info.error)
                mended = True
                await handle.resume()
                print("result", await handle)
        """,
    )
    lines = output.splitlines()
    assert lines[0] == "suspended durable.errors.NonDeterminismError"
    assert "fetch[1]" in output and "fetch[5]" in output and "program.py:" in output
    assert lines[-1] == "result 1" and notes == ["fetch 1"]


def test_a_task_that_does_not_recover_by_itself(tmp_path: Path) -> None:
    """With `auto_recover=False` it waits for a fresh start with its key, which brings the identity back."""
    output, notes = lives(
        tmp_path,
        """
        @step
        async def work(n: int):
            note(f"work {n} {current_user().secrets['token']}")
            if LIFE == 1 and n == 2:
                die()

        @task(auto_recover=False)
        async def body(ctx: Context):
            await work(1)
            await work(2)
            return ctx.user

        async def main():
            async with Durable(FOLDER) as app:
                with run_as(UserContext("ann", {"token": f"token{LIFE}"})):
                    if LIFE == 2:
                        while await (await app.find("k")).status() != "suspended":
                            await asyncio.sleep(0.01)
                    handle = await body.options(key="k").start()
                print(await handle.wait(timeout=20))
        """,
    )
    assert output.strip() == "ann"
    assert notes == ["work 1 token1", "work 2 token1", "work 2 token2"]


def test_max_recoveries(tmp_path: Path) -> None:
    """A body that ends its process is not recovered for ever."""
    output, notes = lives(
        tmp_path,
        """
        @task(max_recoveries=2)
        async def body():
            note("body")
            die()

        async def main():
            async with Durable(FOLDER) as app:
                handle = await body.options(key="k").start()
                try:
                    await handle
                except RunFailedError:
                    print(await handle.status())
        """,
        count=4,
    )
    assert output.strip() == "failed" and notes == ["body"] * 3

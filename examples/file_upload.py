"""Uploading a file, while its title and its summary are made: a parent, two children at once, and a coordinator.

    python examples/file_upload.py [FILE]    # by default this program; the copy goes to the folder ./uploads
    durable show "upload of FILE"            # what it was made of

`upload_file` *returns* its children. They start, in parallel, in the same commit in which it ends; from then on it waits without a
coroutine, a slot or a timer. The commit that ends the last child begins `describe`, which sees the outcome of each. Kill it anywhere:
nothing that was finished is done twice.
"""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from durable import Child, Context, Durable, step, task


@dataclass
class Uploaded:
    """What `upload_file` returns: values, and children where values will be."""

    path: str
    size: int
    title: Child[str]
    summary: Child[str]


@dataclass
class Report:
    path: str
    size: int
    title: str
    summary: str


@step
def store_file(path: str) -> int:
    target = Path("uploads", Path(path).name)
    target.parent.mkdir(exist_ok=True)
    size = target.write_bytes(Path(path).read_bytes())  # the same bytes at the same place: no harm if it happens twice
    print(f"stored {size:,} bytes in {target}", flush=True)
    return size


@task
def extract_file_title(path: str) -> str:
    lines = Path(path).read_text("utf-8").splitlines()
    return next((line.strip("\"'# ") for line in lines if line.strip()), "(empty)")


@task
def summarize_file(path: str) -> str:
    text = Path(path).read_text("utf-8")
    longest = sorted(set(text.split()), key=lambda word: (-len(word), word))[:3]
    return f"{text.count(chr(10)):,} lines, {len(text.split()):,} words, the longest: {', '.join(longest)}"


async def describe(ctx: Context, uploaded: Uploaded) -> Report:
    """The coordinator: it is called once, when all children have ended."""
    return Report(uploaded.path, uploaded.size, uploaded.title.result, uploaded.summary.result)


@task(on_children_complete=describe)
async def upload_file(path: str) -> Uploaded:
    size = await store_file(path)
    return Uploaded(path, size, title=extract_file_title.child(path), summary=summarize_file.child(path))


async def main(path: str) -> None:
    async with Durable() as app:
        handle = await app.start(upload_file.options(key=f"upload of {path}"), path)
        report = await handle
        print(f"title:   {report.title}")
        print(f"summary: {report.summary}")
        for child in await handle.children():
            info = await child.info()
            print(f"child {info.run_id[-6:]} ran {info.task_name}: {info.status}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else __file__))

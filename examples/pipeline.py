"""Extract, transform, load: a pipeline of steps over real files, which goes on where it was killed.

    python examples/pipeline.py [FOLDER]    # the Python files of FOLDER; by default those of the standard library's `json`
    cat lines.csv effects.txt

Kill it with `kill -9` and run it again: `effects.txt`, to which each step appends a line when it is done, has no line twice.
"""

import ast
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from durable import Durable, map, step, task


@dataclass
class Row:
    module: str
    lines: int
    functions: int


def effect(text: str) -> None:
    """Something that the outside world sees: it must not happen twice."""
    with Path("effects.txt").open("a") as file:
        file.write(f"{text}\n")
    print(text, flush=True)


@step
def extract(folder: str) -> list[str]:
    paths = sorted(str(path) for path in Path(folder).glob("*.py"))
    effect(f"extracted {len(paths)} files")
    return paths


@step
def transform(path: str) -> Row:
    source = Path(path).read_text("utf-8")
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(source)))
    time.sleep(0.2)  # as if it were a lot of work
    effect(f"transformed {Path(path).name}")
    return Row(Path(path).name, source.count("\n"), functions)


@step
def load(rows: list[Row]) -> str:
    target = Path("lines.csv")
    target.write_text("".join(f"{row.module},{row.lines},{row.functions}\n" for row in rows))
    effect(f"loaded {len(rows)} rows")
    return str(target)


@task
async def pipeline(folder: str) -> str:
    paths = await extract(folder)
    rows = await map(transform, paths, limit=2)
    return await load(rows)


async def main(folder: str) -> None:
    async with Durable() as app:
        handle = await app.start(pipeline.options(key=f"pipeline of {folder}"), folder)
        print(f"the rows are in {await handle}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else str(Path(json.__file__).parent)))

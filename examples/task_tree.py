"""A tree of tasks: children of children in parallel, a chain among them, and coordinators that put it all together.

    python examples/task_tree.py

        root ─┬─ branch ─┬─ leaf A1        in parallel
              │          ├─ leaf A2
              │          └─ leaf A3
              └─ first >> second >> third  one after the other, each with the result of the one before

Each box is a run of its own, recovered and retried on its own. No run waits in memory for another.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from durable import Child, Durable, Handle, task


@task(name="tree_leaf")
async def leaf(label: str, name: str) -> str:
    await asyncio.sleep(0.01)  # as if it were work
    return f"Hello from task {label}, {name}!"


# --- a branch with three leaves -------------------------------------------------------------------------------------------------


@dataclass
class Branch:
    greeting: str
    leaves: list[Child[str]]


async def gather_leaves(branch: Branch) -> list[str]:
    return [branch.greeting, *(child.result for child in branch.leaves)]  # in the order in which they were returned


@task(name="tree_branch", on_children_complete=gather_leaves)
async def branch(label: str, name: str) -> Branch:
    return Branch(f"Hello from task {label}, {name}!", [leaf.child(f"{label}{n}", name) for n in (1, 2, 3)])


# --- a chain --------------------------------------------------------------------------------------------------------------------


@dataclass
class Passed:
    name: str
    greetings: list[str]


@task(name="tree_first")
async def first(name: str) -> Passed:
    return Passed(name, [f"Hello from task B1, {name}!"])


@task(name="tree_second")
async def second(passed: Passed) -> Passed:
    return Passed(passed.name, [*passed.greetings, f"Hello from task B2, {passed.name}!"])


@task(name="tree_third")
async def third(passed: Passed) -> list[str]:
    return [*passed.greetings, f"Hello from task B3, {passed.name}!"]


in_sequence = first >> second >> third  # a task like any other, typed: str in, list[str] out


# --- the root -------------------------------------------------------------------------------------------------------------------


@dataclass
class Root:
    greeting: str
    a: Child[list[str]]
    b: Child[list[str]]


async def flatten(root: Root) -> list[str]:
    return [root.greeting, *root.a.result, *root.b.result]


@task(name="tree_root", on_children_complete=flatten)
async def root(name: str) -> Root:
    return Root(f"Hello from root task, {name}!", branch.child("A", name), in_sequence.child(name))


async def show(run: Handle[Any], depth: int = 0) -> None:
    """Print a run and, indented, its children."""
    info = await run.info()
    print(f"  {'  ' * depth}{info.task_name:<{46 - 2 * depth}}{info.status}")
    for child in await run.children():
        await show(child, depth + 1)


async def main() -> None:
    async with Durable() as app:
        handle = await app.start(root, "world")
        for greeting in await handle:
            print(greeting)
        print("\nthe family:")
        await show(handle)


if __name__ == "__main__":
    asyncio.run(main())

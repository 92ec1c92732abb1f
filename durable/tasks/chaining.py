"""Chains: several tasks as one, each given the result of the one before.

Law: a chain's body does nothing but call its links, so a run of it is recorded and recovered like any other; the same links make
the same chain, however often it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from durable.core.retry import ONCE
from durable.errors import DefinitionError
from durable.tasks.definition import NO_OPTIONS, FunctionFacts, StartOptions, TaskDefinition, name_of
from durable.tasks.host import current_scope
from durable.tasks.plain import call_plain
from durable.tasks.registry import find_task, register_task

#: A task, and the options with which the chain calls it.
Link = tuple[TaskDefinition, StartOptions]

NAME_CHARACTERS_MAX = 200


class Chain:
    """The body of a chain, with the signature of its first link, and the result of its last.

    Arguments:
        links: at least one.
        name: of the task that this is the body of.
        named: whether it was given that name, so that a longer chain calls it as one.
    """

    def __init__(self, links: tuple[Link, ...], name: str, named: bool) -> None:
        first, returns = links[0][0].facts, links[-1][0].result_hint
        self.links = links
        self.named = named
        self.__name__ = self.__qualname__ = name
        self.__doc__ = f"The chain {name}."
        self.__signature__ = first.signature.replace(return_annotation=returns)
        hints = {name: hint for name, hint in first.hints.items() if name in first.signature.parameters}
        self.__annotations__ = {**hints, "return": returns}

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the links, one after the other."""
        scope = current_scope.get()
        for definition, options in self.links:
            if scope is None:
                value = await call_plain(definition, args, kwargs)
            else:
                value = await scope.call_task(definition, options, args, kwargs)
            args, kwargs = (value,), {}
        return args[0]


def chained(links: Sequence[Link], name: str | None = None) -> Link:
    """The task that calls the links one after the other; a chain among them that has no name of its own is taken apart.

    Arguments:
        links: in order; all but the first get one argument, the result of the one before.
        name: by default the names of the links, joined.

    Raises:
        DefinitionError: there is none, or one that is not the first cannot be called with one argument.
        DuplicateTaskError: another task has the name.
        ConfigError: the name cannot be one.
    """
    flat = tuple(part for link in links for part in _parts(link))
    if not flat:
        raise DefinitionError("a chain needs at least one task: chain(extract, transform, load)")
    if len(flat) == 1 and name is None:
        return flat[0]
    for definition, _ in flat[1:]:
        definition.facts.check_takes_one(f"task {definition.name!r} gets the result of the one before it in a chain")
    body = Chain(flat, _joined(flat) if name is None else name, name is not None)
    name = name_of(body, name, "chain")
    known = find_task(name)
    if known is not None and isinstance(known.facts.function, Chain) and known.facts.function.links == flat:
        return known, NO_OPTIONS
    origin = ", ".join(_described(link) for link in flat)
    facts = FunctionFacts(body, flat[0][0].facts.context_class)
    definition = TaskDefinition(name=name, facts=facts, retry=ONCE, origin=f"chain({origin})")
    register_task(definition)
    return definition, NO_OPTIONS


def _parts(link: Link) -> tuple[Link, ...]:
    body = link[0].facts.function
    # With options it is started as one, for they hold for it as a whole.
    return body.links if isinstance(body, Chain) and not body.named and link[1] == NO_OPTIONS else (link,)


def _joined(links: tuple[Link, ...]) -> str:
    whole = " >> ".join(definition.name for definition, _ in links)
    if len(whole) <= NAME_CHARACTERS_MAX:
        return whole
    digest = f"… {sha256(whole.encode()).hexdigest()[:16]}"
    return whole[: NAME_CHARACTERS_MAX - len(digest)] + digest


def _described(link: Link) -> str:
    """What tells the link from others, over a reload of the module that defines it too."""
    definition, options = link
    return f"{definition.name} of {definition.origin}" + ("" if options == NO_OPTIONS else f" with {options}")

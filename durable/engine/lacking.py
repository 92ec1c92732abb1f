"""Lacking code: what is said of a run that nobody who is there can execute.

Law: it says what the run needs, what there is, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable

from durable.core.run import Run


def lacking(run: Run, versions: Iterable[str | None], where: str) -> str:
    """What to say of a run for which there is no code.

    Arguments:
        versions: those in which its task is there; None stands for code without a version, which fits all.
        where: who has them.
    """
    known = sorted({version for version in versions if version is not None})
    if run.version is None or not known:
        wanted = "" if run.version is None else f" in version {run.version!r}"
        return f"{where} has its task {run.task!r}{wanted}: it goes on by itself as soon as one has"
    there = ", ".join(map(repr, known))
    return (
        f"{where} has its task {run.task!r} in version {run.version!r}, with which it was started, but version {there} is there: it goes "
        "on by itself as soon as one has that version, or code without a version; or cancel it, and start it anew"
    )

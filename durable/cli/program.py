"""The module that `durable worker` executes the tasks of: found, imported, and the application in it.

Law: what is wrong with it is said in one line, with the place in the user's code where there is one.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

from durable.app import Durable
from durable.errors import ConfigError
from durable.tasks.registry import all_tasks


def load(module_name: str, app_name: str) -> Durable | None:
    """Import a module, by its dotted name or as a .py file, and return the application in it.

    Arguments:
        app_name: what the application is called in the module; empty: none is wanted.

    Raises `ConfigError` for a module that is not there, cannot be imported, or has no task or no such application.
    """
    module = _imported(_dotted_name(module_name))
    app = vars(module).get(app_name)
    if app_name and not isinstance(app, Durable):
        found = [name for name, value in vars(module).items() if isinstance(value, Durable)]
        raise _wrong(f"{module_name} has no Durable object {app_name!r}; it has {', '.join(found) or 'none at all'}")
    if not all_tasks():
        raise _wrong(
            f"{module_name} has no task: name the module whose functions are under @task, or one that imports it"
        )
    return app


def _dotted_name(name: str) -> str:
    """The name to import; the folder to find it in is put first in `sys.path`: for a file, the one in which its package is."""
    if not name.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        return name
    path = Path(name).resolve()
    if not path.is_file():
        raise _wrong(f"there is no file {name!r}")
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))
    return ".".join(parts)


def _imported(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise _wrong(
                f"there is no module {name!r}, neither installed nor in {os.getcwd()}: name it as in pkg.tasks, or pkg/tasks.py"
            ) from error
        raise _wrong(f"module {name!r} cannot be imported: {type(error).__name__}: {error}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Where in the code of the user the error came up."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if "importlib" not in frame.filename]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _wrong(message: str) -> ConfigError:
    return ConfigError(message, key="module")

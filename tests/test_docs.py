"""Documents that are made from the code say what the code says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from durable import Config, ConfigError, Limits
from durable.config import PayloadSettings
from durable.environment import variable

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
RECOVERY = PAGE.with_name("recovery.md")

PARTS: dict[str, type] = {
    **{f"Config.{spec.name}": type(spec.default) for spec in fields(Config)},
    "Limits": Limits,
}
SECONDS = {"window", "slot_timeout", "dead_letter_ttl"}
#: What taskflow calls the same, or what comes nearest to it; its durations are milliseconds.
TASKFLOW = {
    "log.segment_bytes": "eventLog.maxSizeBytesPerFile",
    "log.segment_age_seconds": "eventLog.maxAgePerFile",
    "flush.interval_seconds": "flush.flushIntervalMs",
    "flush.batch_records_max": "flush.maxBatchSize",
    "flush.breaker_threshold": "flush.circuitBreakerThreshold",
    "flush.breaker_open_seconds": "flush.circuitBreakerDurationMs",
    "payload.bytes_max": "validator.maxPayloadSizeBytes",
    "engine.max_concurrent_recoveries": "guard.recovery.maxRecoverySlots",
    "engine.default_timeout_seconds": "executor.defaultTimeoutMs",
    "engine.shutdown_grace_seconds": "shutdown.gracePeriodMs",
    "engine.cancel_grace_seconds": "shutdown.forceKillTimeoutMs",
    "stream.buffer_size": "stream.streamBufferSize",
    "stream.retention_seconds": "stream.streamRetentionMs",
    "retention.interval_seconds": "guard.dlq.cleanupIntervalMs",
    "postgres.lease_seconds": "recovery.staleThresholdMs, executor.heartbeatIntervalMs",
    "postgres.poll_seconds": "recovery.backgroundPollIntervalMs",
    "postgres.connections_max": "storage.maxConnections",
    "postgres.connect_seconds": "storage.connectionTimeoutMs",
    "limits.max_starts_per_window": "guard.backpressure.maxTasksPerWindow",
    "limits.max_starts_per_user_window": "guard.backpressure.maxTasksPerUserWindow",
    "limits.window": "guard.backpressure.windowSizeMs",
    "limits.max_queued": "guard.backpressure.maxQueuedSize",
    "limits.max_running": "guard.slots.maxExecutionGlobal",
    "limits.max_running_per_user": "guard.slots.maxExecutionPerUser",
    "limits.slot_timeout": "guard.slots.slotTimeoutMs",
    "limits.dead_letter_size": "guard.dlq.maxSize",
    "limits.dead_letter_ttl": "guard.dlq.ttlMs",
    "limits.dead_letter_retries": "guard.dlq.maxRetries",
}


def explanations(kind: type) -> dict[str, str]:
    """What the docstring says about each argument."""
    found: dict[str, str] = {}
    name = ""
    for line in (kind.__doc__ or "").split("Arguments:")[-1].splitlines():
        text = line.strip()
        if text and line.startswith("        ") and ": " in text and text.split(": ")[0].isidentifier():
            name, _, rest = text.partition(": ")
            found[name] = rest
        elif text and name:
            found[name] += " " + text
    return found


def unit(spec: Field[Any]) -> str:
    """What the value counts."""
    if spec.name.endswith("seconds") or spec.name in SECONDS:
        return "s"
    if "bytes" in spec.name:
        return "bytes"
    return "count" if "int" in str(spec.type) else ""


HEAD = """\
# Settings

Made from `durable/config.py`; `tests/test_docs.py` keeps it true (`DURABLE_WRITE_DOCS=1` writes it). Durations are seconds. A wrong value
raises `ConfigError` with its key when the settings are made.

```python
from durable import Config, Durable, Limits
from durable.config import EngineSettings

app = Durable(
    "./state",
    limits=Limits(max_running=50),
    config=Config(engine=EngineSettings(max_recoveries=5)),
)
```

## Variables of the environment

Each setting has a variable, `DURABLE_<PART>_<KEY>`: `DURABLE_ENGINE_MAX_RECOVERIES=5`, `DURABLE_POSTGRES_LEASE_SECONDS=3`,
`DURABLE_LIMITS_MAX_RUNNING=10`. An application reads them where it says so, and what it then says itself wins:

```python
from dataclasses import replace

from durable import Config, Durable, Limits

environ = {"DURABLE_ENGINE_MAX_RECOVERIES": "5", "DURABLE_LIMITS_MAX_RUNNING": "10"}  # os.environ, where it is left out
config, limits = Config.from_env(environ), Limits.from_env(environ)
app = Durable("./state", limits=replace(limits, max_running=50), config=config)
assert (app.config.engine.max_recoveries, app.limits.max_running) == (5, 50)
```

Numbers are written as usual, switches as `true` or `false`, and what may be None is None when it is empty. A value that is none, and a
variable `DURABLE_<PART>_...` that names no setting, raise `ConfigError` with the name of the variable; secret values are never shown.

`durable worker` and the other commands read them too; an option of the command line wins, and so does the application of `MODULE:APP`.
`DURABLE_STORE` names the store of commands without `--store`.
"""


def render() -> str:
    """The page, from the settings' own docstrings and defaults."""
    lines = [HEAD.rstrip()]
    for part, kind in PARTS.items():
        told, name = explanations(kind), part.rpartition(".")[2].lower()
        lines += ["", f"## {part}: `{kind.__name__}`", ""]
        lines += ["| setting | default | unit | meaning | in taskflow |", "|---|--:|---|---|---|"]
        for spec in fields(kind):
            theirs = TASKFLOW.get(f"{name}.{spec.name}", "")
            named = f"`{theirs}`" if theirs else ""
            lines.append(f"| `{spec.name}` | `{spec.default!r}` | {unit(spec)} | {told[spec.name]} | {named} |")
    return "\n".join(lines) + "\n"


def programs(page: Path) -> list[str]:
    """The blocks of Python on a page."""
    return [block.split("```")[0] for block in page.read_text("utf-8").split("```python\n")[1:]]


@pytest.mark.parametrize(
    ("page", "number"), [(page, n) for page in (PAGE, RECOVERY) for n in range(len(programs(page)))]
)
def test_programs_of_the_pages_run(tmp_path: Path, page: Path, number: int) -> None:
    """As scripts of their own; each prints what the comments behind its prints say."""
    code = programs(page)[number]
    script = tmp_path / "program.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line.rpartition("  # ")[2] for line in code.splitlines() if line.lstrip().startswith("print(")]
    assert done.stdout.splitlines() == said


def test_every_name_of_taskflow_belongs_to_a_setting() -> None:
    """Nothing is left over when a setting is renamed."""
    names = {f"{part.rpartition('.')[2].lower()}.{spec.name}" for part, kind in PARTS.items() for spec in fields(kind)}
    assert set(TASKFLOW) <= names
    assert len({variable(*name.split(".")) for name in names}) == len(names)


def test_the_page_of_settings_is_up_to_date() -> None:
    """Each setting is on the page with its default."""
    if os.environ.get("DURABLE_WRITE_DOCS"):
        PAGE.write_text(render())
    assert PAGE.read_text() == render()


def test_every_setting_is_explained() -> None:
    """A setting without a word about it is not finished."""
    for kind in PARTS.values():
        assert {spec.name for spec in fields(kind)} == set(explanations(kind))


def test_a_value_has_to_fit_into_a_frame_of_the_log() -> None:
    """A payload limit that no frame could hold is refused when the settings are made, not when a run reaches it."""
    with pytest.raises(ConfigError) as caught:
        Config(payload=PayloadSettings(bytes_max=64 * 1024 * 1024))
    assert caught.value.key == "payload.bytes_max"

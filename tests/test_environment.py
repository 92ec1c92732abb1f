"""Settings from variables: each has one, its value is checked, and what is wrong names the variable and shows no secret."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from durable import Config, ConfigError, Limits
from durable.config import EngineSettings, PayloadSettings, PostgresSettings
from durable.environment import variable

SECRET = "a-key-that-nobody-may-see"


def test_nothing_said_is_the_default() -> None:
    assert Config.from_env({}) == Config()
    assert Limits.from_env({"PATH": "/bin", "DURABLE_STORE": "x", "DURABLE_FULL": "1"}) == Limits()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DURABLE_ENGINE_MAX_RECOVERIES": "5"}, Config(engine=EngineSettings(max_recoveries=5))),
        ({"DURABLE_ENGINE_CONCURRENCY": ""}, Config()),
        ({"DURABLE_ENGINE_CONCURRENCY": "7"}, Config(engine=EngineSettings(concurrency=7))),
        ({"DURABLE_ENGINE_DEFAULT_TIMEOUT_SECONDS": "2.5"}, Config(engine=EngineSettings(default_timeout_seconds=2.5))),
        ({"DURABLE_ENGINE_ON_NEW_STEP": "error"}, Config(engine=EngineSettings(on_new_step="error"))),
        ({"DURABLE_POSTGRES_MIGRATE": "No"}, Config(postgres=PostgresSettings(migrate=False))),
        ({"DURABLE_POSTGRES_LEASE_SECONDS": "3"}, Config(postgres=PostgresSettings(lease_seconds=3.0))),
        ({"DURABLE_POSTGRES_SCHEMA": "shop", "DURABLE_POSTGRES_NOTIFY": "poll"},
         Config(postgres=PostgresSettings(schema="shop", notify="poll"))),
        ({"DURABLE_PAYLOAD_PICKLE_KEY": SECRET}, Config(payload=PayloadSettings(pickle_key=SECRET.encode()))),
    ],
)  # fmt: skip
def test_values_are_read_by_their_type(environ: dict[str, str], expected: Config) -> None:
    assert Config.from_env(environ) == expected


def test_limits_are_read_and_code_wins() -> None:
    limits = Limits.from_env({"DURABLE_LIMITS_MAX_RUNNING": "10", "DURABLE_LIMITS_MAX_QUEUED": "0"})
    assert limits == Limits(max_running=10, max_queued=0)
    assert replace(limits, max_running=20).max_running == 20


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("DURABLE_ENGINE_MAX_RECOVERIES", "many", "a whole number"),
        ("DURABLE_ENGINE_MAX_RECOVERIES", "", "a whole number"),
        ("DURABLE_ENGINE_MAX_RECOVERIES", "1.5", "a whole number"),
        ("DURABLE_ENGINE_MAX_RECOVERIES", "-1", "zero or more"),
        ("DURABLE_ENGINE_CONCURRENCY", "none", "a whole number, or empty for none"),
        ("DURABLE_ENGINE_IDLE_SECONDS", "nan", "a number"),
        ("DURABLE_ENGINE_IDLE_SECONDS", "inf", "a number"),
        ("DURABLE_ENGINE_ON_NEW_STEP", "ignore", "one of run, error"),
        ("DURABLE_POSTGRES_MIGRATE", "perhaps", "true or false"),
        ("DURABLE_POSTGRES_SCHEMA", "Not A Name", "lower-case letters"),
        ("DURABLE_PAYLOAD_BYTES_MAX", str(1 << 40), "half of log.frame_bytes_max"),
        ("DURABLE_ENGINE_MAX_RECOVERYS", "5", "names no setting"),
        ("DURABLE_LOG_LEVEL", "debug", "names no setting"),
    ],
)
def test_what_is_wrong_names_the_variable(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({name: text})
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_a_limit_that_is_wrong_names_its_variable() -> None:
    for name, text in (("DURABLE_LIMITS_WINDOW", "-1"), ("DURABLE_LIMITS_WINDOW", "x"), ("DURABLE_LIMITS_MAX", "1")):
        with pytest.raises(ConfigError, match=name):
            Limits.from_env({name: text})


def test_a_secret_is_never_shown() -> None:
    """Neither in an error nor where settings are shown."""
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"DURABLE_PAYLOAD_PICKLE_KEY": "too-short"})
    assert "too-short" not in str(caught.value)
    assert "DURABLE_PAYLOAD_PICKLE_KEY" in str(caught.value)
    assert SECRET not in repr(Config.from_env({"DURABLE_PAYLOAD_PICKLE_KEY": SECRET}))


def test_every_setting_can_be_read() -> None:
    """Written out as a variable, each default comes back as it is."""
    parts: dict[str, Any] = {spec.name: spec.default for spec in fields(Config)}
    environ = {
        variable(part, spec.name): _text(getattr(settings, spec.name))
        for part, settings in parts.items()
        for spec in fields(settings)
    }
    assert Config.from_env(environ) == Config()
    assert Limits.from_env({variable("limits", spec.name): _text(spec.default) for spec in fields(Limits)}) == Limits()


def _text(value: object) -> str:
    return "" if value is None else str(value)

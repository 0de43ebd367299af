from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import jobq
from jobq import config, sources
from jobq.client import get_client
from jobq.config import QueueOptions, Settings, warn_secret_unprotected
from jobq.errors import ConfigError
from jobq.limits import Rate
from jobq.queues import LANES, QueueSpec, Retention, queue
from jobq.retry import Backoff, Fixed, RetryPolicy, Steps

KEY = "k" * 32


@pytest.fixture
def load(tmp_path):
    def call(
        environ: dict[str, str] | None = None, dotenv: str = "", toml: str = "", pyproject: str = "", **flags
    ):
        for name, text in ((".env", dotenv), ("jobq.toml", toml), ("pyproject.toml", pyproject)):
            if text:
                (tmp_path / name).write_text(text)
        return Settings.load(environ=environ or {}, directory=tmp_path, **flags)

    return call


def refused(load, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_defaults_are_those_of_the_contract(load):
    settings = load()
    assert settings.redis_url == "redis://localhost:6379/0"
    assert (settings.max_attempts, settings.lease, settings.key_prefix) == (3, timedelta(seconds=12), "rq")
    assert (settings.payload_limit, settings.enqueue_timeout) == (262_144, timedelta(seconds=1))
    assert (settings.enabled, settings.fallback, settings.log_format) == (True, "raise", None)
    assert (settings.accept_unsigned, settings.accept_unbound) == (False, True)
    assert settings.timeout == timedelta(seconds=180)
    assert settings.queue_specs() == LANES
    assert settings.retry_policy() == RetryPolicy()
    assert set(settings.origins().values()) == {"default"}


def test_every_source_beats_the_ones_after_it(load, tmp_path):
    def lease(settings: Settings) -> tuple[str, str]:
        return settings.shown()["lease"], settings.origins()["lease"]

    environ = {"JOBQ_LEASE": "2s"}
    settings = load(environ, dotenv="JOBQ_LEASE=3s", toml='lease = "4s"', lease="1s")
    assert lease(settings) == ("1s", "argument")
    assert lease(load(environ)) == ("2s", "environment JOBQ_LEASE")
    assert lease(load()) == ("3s", ".env JOBQ_LEASE")
    (tmp_path / ".env").unlink()
    assert lease(load()) == ("4s", "jobq.toml")
    (tmp_path / "jobq.toml").unlink()
    assert lease(load()) == ("12s", "default")


def test_pyproject_is_read_where_there_is_no_jobq_toml(load):
    text = '[project]\nname="x"\n[tool.jobq]\nkey-prefix = "p"\napp = ["a.b", "c"]\n'
    text += "[tool.jobq.queues.email]\nslots = 5\n"
    settings = load(pyproject=text)
    assert (settings.key_prefix, settings.app) == ("p", ("a.b", "c"))
    assert settings.queue_specs()["email"].slots == 5
    assert settings.origins()["queues.email.slots"] == "pyproject.toml [tool.jobq]"
    assert load(toml='key_prefix = "q"').key_prefix == "q"


def test_an_explicit_file_is_read_instead(load, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text('env = "staging"')
    assert load(toml='env = "x"', config_file=other).env == "staging"
    settings = load({"JOBQ_CONFIG": str(other)})
    assert (settings.env, settings.origins()["env"]) == ("staging", str(other))
    assert "cannot be read: No such file" in refused(load, config_file=tmp_path / "none.toml")
    other.write_text("env = ")
    assert "not valid TOML" in refused(load, config_file=other)


def test_a_flag_of_none_and_an_empty_variable_count_as_not_set(load):
    settings = load({"JOBQ_SECRET_KEY": "", "JOBQ_LEASE": " ", "REDIS_PASSWORD": ""}, redis_url=None)
    assert (settings.secret_key, settings.lease) == (None, timedelta(seconds=12))
    assert settings.redis_url == "redis://localhost:6379/0"


@pytest.mark.parametrize(
    ("environ", "url", "origin"),
    [
        (
            {"JOBQ_REDIS_URL": "redis://a", "REDIS_URL": "redis://b", "REDIS_HOST": "c"},
            "redis://a",
            "JOBQ_REDIS_URL",
        ),
        ({"REDIS_URL": "redis://b", "REDIS_HOST": "c"}, "redis://b", "REDIS_URL"),
        (
            {"REDIS_HOST": "c", "REDIS_PORT": "1", "REDIS_PASSWORD": "p@/:w", "REDIS_DB": "4"},
            "redis://:p%40%2F%3Aw@c:1/4",
            "REDIS_HOST",
        ),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0", "REDIS_HOST"),
        ({"REDIS_PASSWORD": "x"}, "redis://:x@localhost:6379/0", "REDIS_PASSWORD"),
        ({"REDIS_PORT": "tcp://10.0.0.7:6390"}, "redis://10.0.0.7:6390/0", "REDIS_PORT"),
    ],
)
def test_the_redis_url_falls_back(load, environ, url, origin):
    settings = load(environ)
    assert settings.redis_url == url
    assert settings.origins()["redis_url"] == f"environment {origin}"


def test_our_name_in_dotenv_beats_a_foreign_name_of_the_environment(load):
    settings = load({"REDIS_URL": "redis://theirs"}, dotenv="JOBQ_REDIS_URL=redis://ours\n")
    assert settings.redis_url == "redis://ours"


def test_the_parts_of_a_redis_url_may_come_from_two_places(load):
    settings = load({"REDIS_HOST": "h"}, dotenv="REDIS_PASSWORD=pw\nREDIS_HOST=other\n")
    assert settings.redis_url == "redis://:pw@h:6379/0"


def test_names_of_other_tools(load):
    settings = load({"JOB_MAX_RETRIES": "5", "JOB_RETRY_DELAY": "2500", "RQ_KEY_PREFIX": "x"})
    assert (settings.max_attempts, settings.retry_delay) == (5, timedelta(milliseconds=2500))
    assert settings.key_prefix == "x"
    assert load({"JOB_MAX_RETRIES": "5", "JOBQ_MAX_ATTEMPTS": "7"}).max_attempts == 7
    assert load({"JOB_RETRY_DELAY": "4s"}).retry_delay == timedelta(seconds=4)
    assert load({"JOBQ_RETRY_DELAY": "10m"}).retry_policy().delays == Backoff(base=600, cap=600)


@pytest.mark.parametrize(
    ("environ", "enabled"),
    [
        ({"REDIS_ENABLED": "false", "QUEUE_ENABLED": "true"}, False),
        ({"REDIS_ENABLED": "true", "QUEUE_ENABLED": "0"}, False),
        ({"REDIS_ENABLED": "true"}, True),
        ({"REDIS_ENABLED": "false", "JOBQ_ENABLED": "on"}, True),
    ],
)
def test_switches_of_other_tools(load, environ, enabled):
    assert load(environ).enabled is enabled


@pytest.mark.covers("Q-17")
def test_queue_options_lie_over_lanes_and_make_new_queues(load):
    settings = load({
        "JOBQ_QUEUES__EMAIL__SLOTS": "5",
        "JOBQ_QUEUES__EMAIL__TARGET": "10s",
        "JOBQ_QUEUES__EMAIL__RATE": "50/m",
        "JOBQ_QUEUES__EMAIL__MAX_WAITING": "10_000",
        "JOBQ_QUEUES__HIGH__MAX_ATTEMPTS": "7",
        "JOBQ_QUEUES__HIGH__BACKOFF": "1s,10s,1m",
        "JOBQ_QUEUES__HIGH__TARGET": "none",
        "JOBQ_QUEUES__LOW__ISOLATION": "thread",
        "JOBQ_QUEUES__LOW__NICE": "0",
        "JOBQ_QUEUES__BATCH__TIMEOUT": "1h",
        "JOBQ_QUEUES__BATCH__REDIS_URL": "redis://:pw@other/1",
    })  # fmt: skip
    specs = settings.queue_specs()
    assert list(specs)[:5] == list(LANES)
    assert (specs["email"].slots, specs["email"].target) == (5, timedelta(seconds=10))
    assert specs["email"].rate == Rate(50, per=60)
    assert (specs["high"].max_attempts, specs["high"].slots, specs["high"].target) == (7, 10, None)
    assert specs["high"].backoff == Steps([1, 10, 60])
    assert (specs["low"].isolation, specs["low"].nice) == ("thread", 0)
    assert (specs["batch"].timeout, specs["batch"].redis_url) == (timedelta(hours=1), "redis://:pw@other/1")
    assert settings.origins()["queues.email.slots"] == "environment JOBQ_QUEUES__EMAIL__SLOTS"
    assert settings.shown()["queues.batch.redis_url"] == "redis://:***@other/1"


def test_sources_add_up_option_by_option(load):
    settings = load({"JOBQ_QUEUES__PDF__SLOTS": "3"}, toml="[queues.pdf]\nslots = 2\nnice = 5\n")
    assert (settings.queue_specs()["pdf"].slots, settings.queue_specs()["pdf"].nice) == (3, 5)
    assert load(queues={"pdf": {"slots": 9}}).queue_specs()["pdf"].slots == 9
    assert load(queues=settings.queues).queue_specs()["pdf"].slots == 3


@pytest.mark.parametrize(
    ("text", "delays"),
    [
        ("5s", Backoff(base=5)),
        ("10m", Backoff(base=600, cap=600)),
        ("base=1s,factor=3,cap=1m,jitter=full", Backoff(base=1, factor=3, cap=60, jitter="full")),
        ("fixed=30s", Fixed(30)),
        ("fixed=30s, jitter=0.5", Fixed(30, jitter=0.5)),
        ("1s,10s", Steps([1, 10])),
    ],
)
def test_backoffs(load, text, delays):
    assert load({"JOBQ_QUEUES__HIGH__BACKOFF": text}).queue_specs()["high"].backoff == delays


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({"JOBQ_QUEUES__EMAIL__SLOTS": "five"}, ["JOBQ_QUEUES__EMAIL__SLOTS='five'", "a whole number from 1 to"]),
        ({"JOBQ_QUEUES__EMAIL__SLOTS": "0"}, ["JOBQ_QUEUES__EMAIL__SLOTS='0'"]),
        ({"JOBQ_QUEUES__EMAIL__MAX_WAITING": "-1"}, ["a whole number from 0 to 1,000,000,000"]),
        ({"JOBQ_QUEUES__EMAIL__RATE": "fast"}, ["JOBQ_QUEUES__EMAIL__RATE='fast'", "50/m"]),
        ({"JOBQ_QUEUES__EMAIL__BACKOFF": "base=1s,cup=2s"}, ["JOBQ_QUEUES__EMAIL__BACKOFF=", "1s,10s,1m"]),
        ({"JOBQ_QUEUES__EMAIL__ISOLATION": "fork"}, ["='fork'", "thread or process"]),
        ({"JOBQ_QUEUES__A B__SLOTS": "1"}, ["JOBQ_QUEUES__A B__SLOTS", "letters, digits"]),
        ({"JOBQ_LEASE": "soon"}, ["JOBQ_LEASE='soon'", "500ms, 30s, 5m, 24h or 7d"]),
        ({"JOBQ_LEASE": "1ms"}, ["JOBQ_LEASE='1ms'", "from 300ms to 1h"]),
        ({"JOBQ_ENABLED": "maybe"}, ["JOBQ_ENABLED='maybe'", "true or false"]),
        ({"JOBQ_FALLBACK": "yes"}, ["JOBQ_FALLBACK='yes'", "raise, inline or spool"]),
        ({"JOBQ_LOG_FORMAT": "xml"}, ["JOBQ_LOG_FORMAT='xml'", "json or console"]),
        ({"JOBQ_PAYLOAD_LIMIT": "big"}, ["JOBQ_PAYLOAD_LIMIT='big'", "256kB"]),
        ({"JOBQ_APP": "my-app!"}, ["JOBQ_APP='my-app!'", "myapp.jobs"]),
        ({"JOBQ_KEY_PREFIX": "a b"}, ["JOBQ_KEY_PREFIX='a b'"]),
        ({"JOBQ_SMTP_URL": "http://mail"}, ["JOBQ_SMTP_URL is wrong", "smtp:// or smtps://"]),
        ({"REDIS_PORT": "x"}, ["REDIS_PORT='x'", "65,535"]),
        ({"REDIS_DB": "x"}, ["REDIS_DB='x'"]),
        ({"REDIS_ENABLED": "x"}, ["REDIS_ENABLED='x'", "true or false"]),
        ({"JOB_MAX_RETRIES": "x"}, ["JOB_MAX_RETRIES='x'", "a whole number"]),
        ({"JOBQ_LEASE": "x", "JOBQ_ENV": "a b"}, ["JOBQ_ENV", "JOBQ_LEASE", "also wrong"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_would_be_right(load, environ, parts):
    text = refused(load, environ)
    assert [part for part in parts if part not in text] == []


def test_a_wrong_value_of_a_file_or_an_argument_is_named_too(load):
    assert "jobq.toml: queues.email.slots='x' is wrong" in refused(load, toml="[queues.email]\nslots = 'x'")
    assert "lease='x' is wrong" in refused(load, lease="x", toml="env = 'e'")


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"JOBQ_LEESE": "1s"}, "JOBQ_LEESE is not a known setting; did you mean JOBQ_LEASE?"),
        (
            {"JOBQ_QUEUES__EMAIL__SLOT": "1"},
            "JOBQ_QUEUES__EMAIL__SLOT is not a known setting; did you mean JOBQ_QUEUES__EMAIL__SLOTS?",
        ),
        ({"JOBQ_QUEUES": "x"}, "JOBQ_QUEUES is not a known setting"),
        ({"JOBQ_XYZZY": "1"}, "JOBQ_XYZZY is not a known setting"),
    ],
)
def test_an_unknown_variable_suggests_the_nearest(load, environ, text):
    assert text in refused(load, environ)


def test_unknown_names_elsewhere_suggest_too(load):
    assert "redis_ul is not a known setting; did you mean redis_url?" in refused(load, redis_ul="x")
    assert "did you mean slots?" in refused(load, queues={"email": {"slot": 1}})
    assert "jobq.toml: leese is not a known setting; did you mean lease?" in refused(load, toml="leese = 1")


def test_what_kubernetes_says_of_a_service_called_jobq_is_no_setting(load):
    load({
        "JOBQ_SERVICE_HOST": "10.0.0.1",
        "JOBQ_SERVICE_PORT": "80",
        "JOBQ_SERVICE_PORT_HTTP": "80",
        "JOBQ_PORT": "tcp://10.0.0.1:80",
        "JOBQ_PORT_80_TCP": "tcp://10.0.0.1:80",
        "JOBQ_PORT_80_TCP_ADDR": "10.0.0.1",
        "JOBQ_ADMIN_SERVICE_HOST": "10.0.0.2",
        "JOBQ_ADMIN_PORT_80_TCP_PROTO": "tcp",
    })  # fmt: skip


def test_no_message_and_no_text_form_holds_a_secret(load, tmp_path):
    secret = "hunter2!"
    for environ in (
        {"JOBQ_SECRET_KEY": secret},
        {"JOBQ_REDIS_URL": f"http://u:{secret}@h"},
        {"JOBQ_REDIS_URL": f"redis://u:{secret}@h:port"},
        {"JOBQ_REDIS_URL": f"{secret}"},
        {"REDIS_URL": f"redis://u:{secret}@h/x"},
        {"JOBQ_SMTP_URL": f"imap://u:{secret}@h"},
        {"JOBQ_SQL_URL": f"u:{secret}@h"},
        {"JOBQ_PAYMENT_URL": f"ftp://u:{secret}@h"},
        {"JOBQ_QUEUES__BATCH__REDIS_URL": f"http://u:{secret}@h"},
    ):
        assert secret not in refused(load, environ)
    settings = load({
        "JOBQ_SECRET_KEY": f"{secret}{KEY}",
        "JOBQ_REDIS_URL": f"redis://u:{secret}@h",
        "JOBQ_SMTP_URL": f"smtp://u:{secret}@h",
        "JOBQ_SQL_URL": f"postgresql://u:{secret}@h/db",
        "JOBQ_PAYMENT_TOKEN": secret,
        "JOBQ_QUEUES__BATCH__REDIS_URL": f"redis://:{secret}@h",
    })  # fmt: skip
    for text in (
        repr(settings),
        str(settings),
        f"{settings}",
        repr(settings.shown()),
        repr(settings.origins()),
    ):
        assert secret not in text


def test_secrets_from_files(load, tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    settings = load({"JOBQ_SECRET_KEY_FILE": str(file)})
    assert settings.secret_keys() == (KEY,)
    assert settings.origins()["secret_key"] == "environment JOBQ_SECRET_KEY_FILE"
    file.write_text("redis://:x@q/1")
    queue = load({"JOBQ_QUEUES__BATCH__REDIS_URL_FILE": str(file)}).queue_specs()["batch"]
    assert queue.redis_url == "redis://:x@q/1"
    assert "both set" in refused(load, {"JOBQ_REDIS_URL": "redis://a", "JOBQ_REDIS_URL_FILE": str(file)})
    assert "cannot be read" in refused(load, {"JOBQ_REDIS_URL_FILE": str(tmp_path / "none")})
    assert "JOBQ_LEASE_FILE is not a known" in refused(load, {"JOBQ_LEASE_FILE": str(file)})


def test_several_keys_sign_in_order(load):
    settings = load({"JOBQ_SECRET_KEY": f"{KEY}, {'o' * 20}"})
    assert settings.secret_keys() == (KEY, "o" * 20)
    assert settings.codec().signs
    assert not load().codec().signs


def test_production_needs_a_key(load):
    with pytest.raises(ConfigError, match="JOBQ_SECRET_KEY"):
        load({"JOBQ_ENV": "production"}).require_production_ready()
    load({"JOBQ_ENV": "production", "JOBQ_SECRET_KEY": KEY}).require_production_ready()
    load().require_production_ready()


def test_an_unprotected_secret_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(config, "_warned", False)
    caplog.set_level(logging.WARNING, "jobq")
    warn_secret_unprotected("otp.send")
    warn_secret_unprotected("otp.send")
    assert [record.getMessage() for record in caplog.records] == [
        "secret params of otp.send are stored unencrypted: set JOBQ_SECRET_KEY; in production it is required"
    ]


def test_settings_are_frozen_and_survive_pickling(load):
    settings = load({"JOBQ_LEASE": "2s", "JOBQ_QUEUES__EMAIL__RATE": "5/s"})
    with pytest.raises(ValueError, match="frozen"):
        settings.lease = timedelta(seconds=1)
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert (copy.origins(), copy.queue_specs()) == (settings.origins(), settings.queue_specs())


def test_making_settings_reads_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBQ_LEASE", "2s")
    assert Settings().lease == timedelta(seconds=2)
    assert Settings(lease=3).lease == timedelta(seconds=3)
    with pytest.raises(ConfigError):
        Settings(lease="x")


def test_importing_settings_loads_neither_redis_nor_cryptography():
    code = (
        "import sys, jobq.config; "
        "sys.exit(str({'redis', 'rq', 'cryptography', 'structlog', 'pydantic_settings'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.covers("Q-17", "N-07", "N-08")
def test_slots_by_the_names_of_other_tools(load):
    settings = load(
        {
            "EMAIL_QUEUE_CONCURRENCY": "7",
            "EXPORT_WORKER_CONCURRENCY": "2",
            "AI_WORKER_CONCURRENCY": "3",
            "JOBQ_QUEUES__AI__SLOTS": "9",
            "CELERY_WORKER_CONCURRENCY": "4",
        }
    )
    slots = {name: spec.slots for name, spec in settings.queue_specs().items()}
    assert (slots["email"], slots["export"], slots["ai"]) == (7, 2, 9), "our own name comes first"
    assert "celery" not in slots
    with pytest.raises(ConfigError, match="SYNC_QUEUE_CONCURRENCY='many'"):
        load({"SYNC_QUEUE_CONCURRENCY": "many"})


@pytest.mark.covers("Q-18")
@pytest.mark.parametrize(
    ("profile", "slots"), [("low", (1, 2, 1, 1)), ("medium", (2, 5, 3, 2)), ("high", (4, 10, 5, 4))]
)
def test_a_profile_sizes_the_common_queues(load, profile, slots):
    specs = load({"JOBQ_PROFILE": profile}).queue_specs()
    assert tuple(specs[name].slots for name in ("export", "email", "ai", "scheduled")) == slots
    assert load({"JOBQ_PROFILE": profile, "JOBQ_QUEUES__EMAIL__SLOTS": "6"}).queue_specs()["email"].slots == 6
    assert "export" not in load().queue_specs()


@pytest.mark.covers("L-04")
def test_limits_of_a_queue_by_environment(load):
    spec = load({"JOBQ_QUEUES__EMAIL__RATE": "50/m", "JOBQ_QUEUES__EMAIL__CONCURRENCY": "3"}).queue_specs()[
        "email"
    ]
    assert (spec.limits.rate, spec.limits.concurrency) == (Rate(50, per=60), 3)
    with pytest.raises(ConfigError, match="whole number of at least 1"):
        load({"JOBQ_QUEUES__EMAIL__CONCURRENCY": "0"})


def test_the_page_has_every_setting_and_every_other_name():
    page = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text()
    ours = {f"JOBQ_{name.upper()}" for name in Settings.model_fields if name != "queues"}
    theirs = {label for _, label, _ in sources._ALIASES} | {"JOBQ_CONFIG", "REDIS_ENABLED", "QUEUE_ENABLED"}
    assert not {name for name in ours | theirs if f"`{name}`" not in page}
    assert not {queue for queue in sources._QUEUE_ALIASES if queue not in page}
    row, of_queue = page.partition("`JOBQ_QUEUES__<NAME>__…`")[2].splitlines()[0], QueueOptions.model_fields
    assert not {name for name in of_queue if name.upper() not in row.replace("`", " ").split()}


def test_the_page_has_the_defaults_of_retention(load):
    page = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text()
    spec = QueueSpec("email")
    for option in ("keep_succeeded", "keep_dead", "keep_cancelled"):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{option.upper()}` |"))
        written = row.split("`")[-2]
        read = load({f"JOBQ_QUEUES__EMAIL__{option.upper()}": written}).queue_specs()["email"]
        assert getattr(read, option) == getattr(spec, option)


def test_an_example_of_retention_from_the_page(load):
    spec = load({"JOBQ_QUEUES__EMAIL__KEEP_DEAD": "30d/20000/100MB"}).queue_specs()["email"]
    assert spec.keep_dead == Retention(timedelta(days=30), 20_000, 100 * 1024 * 1024)
    spec = load({"JOBQ_QUEUES__EMAIL__RETENTION": "1h"}).queue_specs()["email"]
    assert spec.keep_dead == Retention(timedelta(hours=1), 5_000)
    assert spec.keep_cancelled == Retention(timedelta(hours=1), 1_000)


@pytest.mark.parametrize("variable", ["WHATSAPP_MESSAGES", "Whatsapp-Messages", "whatsapp.messages"])
@pytest.mark.parametrize("name", ["whatsapp-messages", "whatsapp.messages", "WhatsApp-Messages"])
def test_a_variable_means_the_queue_that_is_called_alike(load, tmp_path, name, variable):
    toml = f'[queues."{name}"]\nslots = 2\ntimeout = "9s"'
    settings = load({f"JOBQ_QUEUES__{variable}__SLOTS": "7"}, toml=toml)
    specs = settings.queue_specs()
    assert set(specs) == {*LANES, name}
    assert (specs[name].slots, specs[name].timeout) == (7, timedelta(seconds=9))
    assert settings.origins()[f"queues.{name}.slots"] == f"environment JOBQ_QUEUES__{variable}__SLOTS"
    (tmp_path / "jobq.toml").unlink()
    queue(QueueSpec(name, slots=3))
    assert load({f"JOBQ_QUEUES__{variable}__SLOTS": "7"}).queue_specs()[name].slots == 7
    assert load(dotenv=f"JOBQ_QUEUES__{variable}__SLOTS=6").queue_specs()[name].slots == 6


def test_a_variable_of_no_known_queue_makes_one(load):
    settings = load({"JOBQ_QUEUES__TEAM_A__SLOTS": "2", "JOBQ_QUEUES__TEAM-A__RATE": "5/s"})
    assert set(settings.queue_specs()) == {*LANES, "team-a"}
    assert settings.queue_specs()["team-a"].slots == 2
    assert load({"JOBQ_QUEUES__HIGH__SLOTS": "3"}).queue_specs()["high"].slots == 3


def test_of_queues_that_are_called_alike_a_variable_means_the_one_that_it_spells(load):
    toml = "[queues.team_a]\nslots = 2\n[queues.team-a]\nslots = 3\n"
    specs = load({"JOBQ_QUEUES__TEAM_A__SLOTS": "9"}, toml=toml).queue_specs()
    assert (specs["team_a"].slots, specs["team-a"].slots) == (9, 3)
    toml = "[queues.'b.1']\nslots = 2\n[queues.b-1]\nslots = 3\n"
    assert "may mean any of the queues b-1, b.1" in refused(load, {"JOBQ_QUEUES__B_1__SLOTS": "9"}, toml=toml)


def test_what_code_declares_comes_last_and_counts_from_then_on(load):
    toml = "[queues.email]\nslots = 4\n"
    settings = load({"JOBQ_QUEUES__EMAIL__TIMEOUT": "9s"}, toml=toml)
    queue(QueueSpec("email", slots=5, timeout=timedelta(seconds=60), nice=7))
    queue(QueueSpec("sms", rate=Rate(5)))
    assert "sms" not in settings.queue_specs()
    for found in (settings.renewed(), load({"JOBQ_QUEUES__EMAIL__TIMEOUT": "9s"}, toml=toml)):
        email = found.queue_specs()["email"]
        assert (email.slots, email.timeout, email.nice) == (4, timedelta(seconds=9), 7)
        assert found.origins()["queues.email.nice"] == "code"
        assert found.queue_specs()["sms"] == QueueSpec("sms", rate=Rate(5))
    assert load(queues={"sms": {"slots": 8}}).queue_specs()["sms"].slots == 8
    assert settings.model_copy(update={"timeout": timedelta(seconds=5)}).renewed().timeout == timedelta(
        seconds=5
    )


def test_a_queue_is_declared_once(load):
    queue(QueueSpec("email", slots=5))
    queue(QueueSpec("email", slots=5))
    with pytest.raises(ConfigError, match="'email' is declared twice"):
        queue(QueueSpec("email", slots=4))
    with pytest.raises(ConfigError, match="expected a QueueSpec"):
        queue("email")
    assert load().queue_specs()["email"].slots == 5


def test_configure_declares_its_queues_in_place_of_those_before(monkeypatch):
    jobq.configure(queues=[QueueSpec("email", slots=5), QueueSpec("sms")])
    client = jobq.configure(queues=[QueueSpec("email", slots=6)], lease="9s")
    assert client.specs["email"].slots == 6
    assert "sms" not in jobq.Settings().queue_specs()
    with pytest.raises(ConfigError):
        jobq.configure(queues=[QueueSpec("pdf")], lease="wrong")
    monkeypatch.setenv("JOBQ_QUEUES__EMAIL__SLOTS", "7")
    assert set(jobq.Settings().queue_specs()) == {*LANES, "email"}
    assert jobq.configure().specs["email"].slots == 7


def test_the_default_client_learns_of_a_queue_that_is_declared_after_it():
    before = jobq.configure(lease="9s")
    queue(QueueSpec("apart", redis_url="redis://elsewhere:6379/0"))
    after = get_client()
    assert after is not before
    assert after.elsewhere == {"apart": "redis://elsewhere:6379/0"}
    assert after.settings.lease == timedelta(seconds=9)
    queue(QueueSpec("apart", redis_url="redis://elsewhere:6379/0"))
    assert get_client() is after
    given = jobq.configure(Settings(lease="8s"))
    queue(QueueSpec("other"))
    assert get_client() is given

"""What ``--help`` says of each command, and what one line on stderr says of an error."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from jobq.cli import main, root
from jobq.cli.common import State
from jobq.job import VERB_STATES, JobState


def commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        own = click.Context(command, parent=context, info_name=name)
        yield own.command_path, command, own
        if isinstance(command, click.Group):
            yield from commands(command, own)


ALL = {path: (command, own) for path, command, own in commands(root, click.Context(root, info_name="jobq"))}


@pytest.mark.parametrize("path", ALL)
def test_the_help_of_a_command(path: str) -> None:
    command, own = ALL[path]
    text = command.get_help(own)
    assert not [line for line in text.splitlines() if line.endswith("...") and "Usage" not in line], text
    assert "--help" not in text.partition("Global options")[0], "it is one of the global options"
    names = {param.make_metavar(own) for param in command.params if isinstance(param, click.Argument)}
    assert not names & {line.strip() for line in text.splitlines()}, "an argument without a text"
    assert (command.help or "").splitlines()[0].endswith("."), "the first line is a sentence"


@pytest.mark.parametrize("verb", VERB_STATES)
def test_a_bulk_offers_the_states_that_its_verb_can_apply_to(verb: str) -> None:
    option = next(each for each in ALL[f"jobq jobs {verb}"][0].params if each.name == "states")
    assert isinstance(option.type, click.Choice)
    fits = set(VERB_STATES[verb]) if verb != "delete" else set(JobState) - {JobState.RUNNING}  # type: ignore[index]
    assert {*option.type.choices} == {state.value for state in fits}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-u foo stats", "jobq: --redis-url is wrong: expected a URL"),
        ("stats what ever", "jobq: Got unexpected extra arguments (what ever). See 'jobq stats --help'."),
        ("-u redis://127.0.0.1:1 jobs show x", "Connection refused; start Redis"),
    ],
)
def test_an_error_line_names_what_was_typed_and_reads_as_a_sentence(
    line: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOBQ_REDIS_URL", raising=False)
    monkeypatch.setattr(
        State, "configure_logging", lambda *_: None
    )  # it is the process's, and other tests look at it
    assert main(line.split()) != 0
    assert said in capsys.readouterr().err

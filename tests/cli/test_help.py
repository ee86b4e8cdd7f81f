"""`--help` explains each argument and shows commands that can be copied."""

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from agent.cli import main as cli

INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"


def verbs() -> dict[str, argparse.ArgumentParser]:
    [found] = [one for one in cli._parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(found.choices)


def examples(text: str) -> Iterator[list[str]]:
    """Yield the words after `backup-agent` of each example, with ids in place of placeholders."""
    for line in text.partition("examples:\n")[2].splitlines():
        if line.strip():
            line = line.replace("LOCATION", f"http://h/v1/a/c/{INSTANCE}.xbstream.gz")
            words = shlex.split(re.sub(r"\b(?:BACKUP|INSTANCE|TASK)\b", INSTANCE, line))
            assert words.pop(0) == "backup-agent"
            yield words


def test_the_program_says_first_what_it_is_for() -> None:
    text = cli._parser().format_help()
    about = text.split("\n\n")[1]
    assert about.startswith("Back up a MySQL or MariaDB server")
    assert len(list(examples(text))) == 5


@pytest.mark.parametrize("name", verbs())
def test_each_argument_is_explained(name: str) -> None:
    verb = verbs()[name]
    assert [action.dest for action in verb._actions if not action.help] == []
    assert verb.description
    assert re.fullmatch(r"[A-Z].*\.", verb.description)


@pytest.mark.parametrize("name", sorted({*verbs()} - {"run", "status"}))
def test_each_verb_has_examples_that_can_be_typed(name: str) -> None:
    shown = list(examples(verbs()[name].format_help()))
    assert shown
    for words in shown:
        assert words[0] == name
        cli._parser().parse_args(words)


def test_the_programs_examples_can_be_typed() -> None:
    for words in examples(cli._parser().format_help()):
        cli._parser().parse_args(words)


def test_a_restore_by_hand_is_among_them() -> None:
    assert "restore --local --store file:///" in verbs()["restore"].format_help()

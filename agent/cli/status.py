"""The verb `status`, which shows the state of the agent on this machine.

It only reads the agent's state directory. It sends no request and takes no lock, so it disturbs
neither a running daemon nor its database.
"""

import argparse

from agent.cli import local, tables
from agent.cli.verb import Verbs, add_json, add_verb
from agent.config.settings import Config
from agent.daemon import CONSUMING, NOT_CONSUMING
from agent.journal import overview
from agent.machine.lock import activity_of_holder

_WORDS = {
    CONSUMING: "an agent runs for instance {instance}, and takes tasks since {since}",
    NOT_CONSUMING: "an agent runs for instance {instance}, but takes no tasks since {since}: "
    "it has no connection to the broker, or its journal or disk is full; its log says why",
    local.LOCAL: "a backup-create --local runs for instance {instance} since {since}; "
    "no agent runs",
    "": "an agent runs for instance {instance}; whether it takes tasks is not known",
}


def add(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "status",
        status,
        "show the state of the agent on this machine",
        more="Exit status 0 if an agent runs and takes tasks from the broker, else 1.",
    )
    add_json(verb)


def status(config: Config, arguments: argparse.Namespace) -> int:
    instance = config.agent.instance_id
    seen = overview(config.agent.journal_file)
    said = activity_of_holder(config.agent.lock_file)
    word, _, since = (said or "").partition(" ")
    tasks = [task._asdict() for task in seen.tasks]
    if arguments.json:
        shown = {
            "instance_id": instance,
            "running": said is not None and word != local.LOCAL,
            "consuming": word == CONSUMING,
            "since": since or None,
            "unsent_reports": seen.unsent,
            "tasks": tasks,
        }
        print(tables.as_json(shown))
    else:
        text = (
            _WORDS.get(word, _WORDS[""])
            if said is not None
            else "no agent runs for instance {instance}"
        )
        print(text.format(instance=instance, since=since))
        print(f"reports that no queue has accepted yet: {seen.unsent}")
        print(tables.task_table(tasks) if tasks else "no task waits or runs")
    return 0 if word == CONSUMING else 1

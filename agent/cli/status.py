"""`status`: what the agent of this machine is at, read from its state folder.

It asks nobody and takes no lock, so it disturbs neither a running daemon nor its database.
"""

import argparse

from agent.cli import tables
from agent.cli.verb import Verbs, add_json, add_verb
from agent.config import Config
from agent.journal import overview
from agent.lock import held


def add(verbs: Verbs) -> None:
    verb = add_verb(verbs, "status", status, "show what the agent of this machine is at")
    verb.epilog = "Exit status 0 also where no agent runs."
    add_json(verb)


def status(config: Config, arguments: argparse.Namespace) -> int:
    folder = config.agent.state_folder
    seen = overview(folder / "journal.sqlite")
    running = held(folder / "lock")
    tasks = [task._asdict() for task in seen.tasks]
    if arguments.json:
        shown = {
            "instance_id": config.agent.instance_id,
            "running": running,
            "unsent_reports": seen.unsent,
            "tasks": tasks,
        }
        print(tables.as_json(shown))
        return 0
    print(f"{'an' if running else 'no'} agent runs for instance {config.agent.instance_id}")
    print(f"reports that no queue has taken yet: {seen.unsent}")
    print(tables.task_table(tasks) if tasks else "no task waits or runs")
    return 0

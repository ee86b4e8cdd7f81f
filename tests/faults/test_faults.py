"""The short form of the fault suite: fewer of the same trials, with a fixed seed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.__main__ import main
from tests.faults.catalogue import all_trials
from tests.faults.trial import Bench, Plan, Trial
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

_SEED = int(os.environ.get("FAULT_SEED", "4"))


@pytest.fixture(scope="module")
def bench(
    scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer, mariadb: MariaDB
) -> Iterator[Bench]:
    bench = Bench(scratch / "faults", rabbitmq, swift_session, mariadb)
    with bench.kept:
        yield bench


@pytest.mark.parametrize(
    "trial",
    list(all_trials(Plan(_SEED, full=False))),
    ids=lambda trial: f"{trial.kind}-{trial.name}",
)
def test_trial(bench: Bench, trial: Trial) -> None:
    print(f"seed {_SEED}: {trial.done}: {trial.do(bench).text}")


def test_a_word_that_no_trial_has_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["faults", "--only", "enigne"])
    assert main() == 1
    assert "no trial has 'enigne'" in capsys.readouterr().out

"""Signals: docker stop sends SIGTERM, and kills after 10 s."""

import signal
import subprocess
import sys
import time
import uuid

from agent.records.trove.names import UNFINISHED
from tests.dropin.image import MAIN, Image
from tests.stack.process import poll


def test_sigterm_ends_a_backup_within_ten_seconds(image: Image) -> None:
    slow = {"BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND": str(2 << 20)}
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *image.arguments(str(uuid.uuid4()))],
        env=image.variables | slow,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    poll("the backup runs", lambda: bool(image.names()), 30)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode not in (0, None)
    assert output == ""
    assert "FAILED interrupted" in errors.splitlines()[-1]
    assert [name for name in image.names() if not name.startswith(UNFINISHED)] == []

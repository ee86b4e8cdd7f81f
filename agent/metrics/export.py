"""The export of the metrics while an agent runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event

from agent.metrics.families import Source, exposition
from agent.metrics.server import MetricsServer
from agent.metrics.textfile import Textfile


@contextmanager
def exported(
    source: Source, listen: tuple[str, int] | None, textfile: Path | None
) -> Iterator[Callable[[], None]]:
    """Export the metrics while the block runs, on a port, in a file, or both.

    If the port or the file can't be used, that is logged and tried again. Yield a function to call
    after the end of a task, from any thread.
    """
    over, consuming = Event(), source.consuming
    if consuming is not None:
        known = consuming
        source = source._replace(consuming=lambda: not over.is_set() and known())
    text = partial(exposition, source)
    with ExitStack() as end:
        if listen is not None:
            end.callback(MetricsServer(*listen, text).close)
        file = Textfile(textfile, text) if textfile is not None else None
        if file is not None:
            end.callback(file.close)
        end.callback(over.set)
        yield file.wake if file is not None else lambda: None

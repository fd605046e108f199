"""A bar with the time left, for anything that takes longer than a moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["bars", "steps"]


def bars(console: Console) -> Progress:
    """Return bars with elapsed and remaining time, which disappear when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log has no use for a moving bar
    )


@contextmanager
def steps(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Show one bar; the function given is told ``(done, total)``."""
    with bars(console) as progress:
        task = progress.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report

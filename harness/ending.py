"""The end of a run that does not finish: KILLED or FAILED, and why."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from harness.config import slug
from harness.errors import StoreAway, TakenOver
from harness.numerics import option
from harness.tracking import RunLog


@contextmanager
def ending(log: RunLog, say: Callable[[str], None]) -> Iterator[None]:
    """See that a run that does not finish ends in one state: KILLED by the user, or FAILED with its traceback."""
    try:
        yield
    except TakenOver:  # whoever has the run now writes how it ends
        raise
    except BaseException as error:
        fail(log, error)
        again = f"go on with: harness train --resume {log.id}{option()}" if log.begun else "it had not begun: start it afresh"
        say(f"{'killed' if _killed(error) else 'failed'}   {log.id}; {again}")
        raise


def fail(log: RunLog, error: BaseException) -> None:
    """Write how a run ended that did not finish. What broke the run may break this too: the first error is the one to show.

    A run that another process has taken over is that one's to end. One whose store is away is left as it stands there: it has
    not ended, and goes on from its journal.
    """
    if isinstance(error, StoreAway | TakenOver):
        return
    with suppress(Exception):
        try:
            log.check_mine()
        except TakenOver:
            return
        log.finish("KILLED" if _killed(error) else "FAILED")
    with suppress(Exception):
        if not _killed(error):
            log.tags({"error": slug(f"{type(error).__name__} {error}"[:500])})
            log.text("traceback.txt", "".join(traceback.format_exception(error)))


def _killed(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt)

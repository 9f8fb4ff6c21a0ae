"""An outage of the store: which errors are one, how it is noticed, and how long anyone waits for its end."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from requests import exceptions

from harness.errors import HarnessError, StoreAway, first_line

# The call that finds the outage takes at most 20 seconds: MLflow waits as long for a locked sqlite file, and so does a
# request here, which is sent twice. What follows is kept without a call, but for a short one now and then.
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # with a server it prints two lines for every run that ends, and a bar for every file
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SHORT = 2  # seconds that such a call may take
SHORTLY = {**IMPATIENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SHORT)}
EVERY = 10  # seconds between two of them
SHARE = 5  # seconds of an epoch for what was kept, once the store answers again
WAIT = 60  # seconds that whoever cannot go on without the store waits for it: the end of a run, mostly

UNANSWERED = (exceptions.ConnectionError, exceptions.Timeout, exceptions.RetryError, exceptions.ChunkedEncodingError)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
Got = TypeVar("Got")


class Outage:
    """The outage that a store is in, if it is: whether anyone should ask it now.

    `knock` asks it shortly, or raises; calls are made inside `around`.
    """

    def __init__(
        self, uri: str, knock: Callable[[], object], around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.uri = uri
        self.knock = knock
        self.around = around
        self.asked_last: float | None = None  # when the store did not answer; None while it does
        self.given_up = False  # whether somebody waited for the end in vain

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Bound the calls inside. Raises StoreAway where the store does not answer, and at once while it is known not to."""
        if not self.over():
            raise StoreAway(f"store {self.uri} does not answer")
        with told(IMPATIENT), self.around():
            try:
                yield
            except HarnessError:
                raise
            except Exception as error:
                if not is_outage(error):
                    raise
                self.asked_last = time.monotonic()
                raise StoreAway(f"store {self.uri} does not answer: {first_line(error)}") from error

    def over(self, every: float = EVERY) -> bool:
        """Whether the store answers, as far as is known; in an outage it is asked shortly, after so many seconds again."""
        if self.asked_last is None:
            return True
        if time.monotonic() - self.asked_last < every:
            return False
        try:
            self.knock()
        except Exception as error:
            if is_outage(error):
                self.asked_last = time.monotonic()
                return False
        self.asked_last, self.given_up = None, False
        return True

    def outlasted(self, call: Callable[[], Got]) -> Got:
        """Ask for what cannot be done without: again each second while the store does not answer.

        Raises StoreAway after a minute; after that at once, as long as the outage lasts.
        """
        end = time.monotonic() + (0 if self.given_up else WAIT)
        while True:
            try:
                self.over(every=1)
                with self.noticed():
                    return call()
            except StoreAway:
                if time.monotonic() >= end:
                    self.given_up = True
                    raise
            time.sleep(1)


@contextmanager
def told(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables that MLflow reads at each call, for a while; those that the user has set stay."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def is_outage(error: BaseException) -> bool:
    """Whether a store did not answer; else it refused, and would again.

    It is refused or silent, answers 429 or 5xx however often it is asked, or is a sqlite file that another process holds.
    A disk that is full or a file that is broken is none: to wait helps neither.
    """
    cause = error.__cause__ or error.__context__  # MLflow puts its own error around it
    found = getattr(cause, "orig", None) or cause  # and so does sqlalchemy
    if isinstance(error, sqlite3.Error) or isinstance(found, sqlite3.Error):
        broken = error if isinstance(error, sqlite3.Error) else found
        return getattr(broken, "sqlite_errorcode", 0) & 0xFF in BUSY
    if isinstance(error, UNANSWERED) or isinstance(cause, UNANSWERED):
        return True
    return getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"  # another database's connection

"""An outage of the store: which errors are one, and how long anyone waits for its end."""

from __future__ import annotations

import sqlite3

from requests import exceptions

# The call that finds the outage takes at most 20 seconds: MLflow waits as long for a locked sqlite file, and so does a
# request here, which is sent twice. What follows is kept without a call, but for a short one now and then.
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
SHORT = 2  # seconds that such a call may take
SHORTLY = {**IMPATIENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SHORT)}
EVERY = 10  # seconds between two of them
SHARE = 5  # seconds of an epoch for what was kept, once the store answers again
WAIT = 60  # seconds that whoever cannot go on without the store waits for it: the end of a run, mostly

UNANSWERED = (exceptions.ConnectionError, exceptions.Timeout, exceptions.RetryError, exceptions.ChunkedEncodingError)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


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

"""Names that processes hold: runs that they train, studies that they launch."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import StoreError

TABLE = Path("/proc/locks")  # "1: FLOCK ADVISORY WRITE 4711 08:02:1234 0 EOF", on Linux


def own_folder() -> Path:
    """For what lies on no disk that is shared: one folder a user, for nobody may take up the lock file of another."""
    user = os.getuid() if sys.platform != "win32" else "user"
    return Path(tempfile.gettempdir()) / f"harness-{user}"


@dataclass(frozen=True)
class Locks:
    """A file for each name in a folder, for the processes that share it; a process that dies holds nothing any more."""

    folder: Path

    @contextmanager
    def hold(self, name: str, seconds: float = 0) -> Iterator[None]:
        """Hold a name. Raises Timeout when another process holds it for longer than `seconds`; below 0 waits for ever.

        Raises StoreError where no lock can be made.
        """
        lock = FileLock(self._file(name))
        try:
            lock.acquire(timeout=seconds)  # which makes the folder
        except Timeout:
            raise
        except OSError as error:
            raise StoreError(f"{self._file(name)} cannot be locked: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()  # the file stays: to remove it would let two others hold it at once

    def ever_held(self, name: str) -> bool:
        """Whether a process holds a name, or has held it."""
        return self._file(name).exists()

    def held(self, name: str) -> bool:
        """Whether a process holds a name."""
        if not self.ever_held(name):
            return False  # and looking makes none
        try:
            with self.hold(name, 0.1):  # another process may be looking, too
                return False
        except Timeout:
            return True

    def holder(self, name: str) -> str:
        """Who holds a name, for a person who would wake or end it: a process that is stopped holds what it held."""
        with suppress(OSError):  # where the kernel does not tell
            inode = self._file(name).stat().st_ino
            for _, kind, _, _, process, place, *_ in map(str.split, TABLE.read_text(encoding="ascii").splitlines()):
                if kind == "FLOCK" and place.endswith(f":{inode}") and int(process) > 0:  # not in another container
                    return f"process {process}"
        return "another process"

    def _file(self, name: str) -> Path:
        return self.folder / f"harness-{name}.lock"

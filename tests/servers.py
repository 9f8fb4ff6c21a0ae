"""A real `mlflow server` for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from processes import free_port


@dataclass
class Server:
    """One over a sqlite file; it can be killed and started again on the same store and port."""

    folder: Path  # where it has its log, and the artifacts that clients send it
    file: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> Server:
        """Return when it answers."""
        store = ("--backend-store-uri", f"sqlite:///{self.file}", "--artifacts-destination", f"{self.folder}/served")
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *where],
                cwd=self.folder,
                env={**clean, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # ten processes more
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                assert answer.status == 200
                return self
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")
            time.sleep(0.2)

    def send(self, how: signal.Signals) -> None:
        """Signal all of its processes."""
        assert self.process
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        if how == signal.SIGKILL:
            self.process.wait(timeout=30)


@contextmanager
def served(folder: Path, file: Path) -> Iterator[Server]:
    """A server that answers, and is killed at the end."""
    server = Server(folder, file)
    try:
        yield server.start()
    finally:
        server.send(signal.SIGKILL)

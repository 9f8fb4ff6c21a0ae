"""Where the time of a run goes: torch's profiler over one epoch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch.profiler import profile

from harness.errors import InputError, refusal
from harness.results import EpochRecord

MOST = 12  # operators that are named


class OneEpoch:
    """Profiles from the first epoch that it hears of to the second, then writes a trace and says what took longest.

    Every call is counted, which makes the epoch longer and leaves weights and losses the same to the bit.
    Raises InputError when the file cannot be written where it is asked for.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        if path.suffix != ".json" or path.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(refusal("profile", str(path), "FILE.json in a folder that is there and can be written"))
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of its own start and end
        self.path, self.say = path, say
        self.profiler, self.heard = profile(), 0

    def __call__(self, done: EpochRecord) -> None:
        """An epoch of the run, 0 too."""
        self.heard += 1
        if self.heard == 1:
            self.profiler.start()
        elif self.heard == 2:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.path))
            self._tell()

    def _tell(self) -> None:
        rows = sorted(self.profiler.key_averages(), key=lambda row: row.self_cpu_time_total, reverse=True)
        total = sum(row.self_cpu_time_total for row in rows)
        self.say(f"profile  {self.path}, for ui.perfetto.dev; of {total / 1e6:.2f} s in torch's operators in that epoch:")
        for row in rows[:MOST]:
            self.say(f"         {row.self_cpu_time_total / total:6.1%}  {row.count:>8,} calls  {row.key}")

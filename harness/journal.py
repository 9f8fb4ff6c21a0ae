"""What a store has not got of one run, in order, in a folder that outlives the process.

`entries.jsonl` has one object a line, `<sha256>/<name>` the files. Both are checked as they are read back: nothing in them is
executed, and no path leads out of the folder or of the run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.errors import InputError

Row = tuple[str, float, int, int]  # key, value, milliseconds since 1970, step


class Entry(BaseModel):
    """One write that the store did not take: metric rows, tags or a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    attempt: int = Field(ge=1)  # of the run; what another attempt did makes this one's entries void
    metrics: tuple[Row, ...] = ()
    tags: dict[str, str] = {}
    artifact: str = ""  # where the file belongs in the run
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    @field_validator("artifact")
    @classmethod
    def _stays_in_the_run(cls, text: str) -> str:
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or "\\" in text:
            raise ValueError("leads out of the run")
        return text


class Journal:
    """The entries that wait, oldest first; only the last file of a name is one of them."""

    def __init__(self, folder: Path) -> None:
        """Read what is there. Raises InputError for lines that no journal has."""
        self.folder, self.file = folder, folder / "entries.jsonl"
        self.waiting: deque[Entry] = deque()
        for entry in self._read():
            self._append(entry)

    def add(self, entry: Entry, content: Path | None = None) -> None:
        """Keep an entry, and the file that it is about, on the disk. Raises OSError when the disk does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if content is not None:
            entry = entry.model_copy(update={"sha256": _sha256(content)})
            place = self.place(entry)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(content, new := place.with_name(f".{place.name}.new"))
            _sync(new)
            new.replace(place)
        whole = self.file.stat().st_size if self.file.exists() else 0
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
            _sync(self.file)
        except OSError:
            os.truncate(self.file, whole)  # half a line would spoil the next one
            raise
        for place in self._append(entry):
            place.unlink(missing_ok=True)

    def place(self, entry: Entry) -> Path:
        """Where the file of an entry lies."""
        return self.folder / entry.sha256 / PurePosixPath(entry.artifact).name

    def content(self, entry: Entry) -> Path:
        """The file of an entry. Raises InputError when it is not what was kept."""
        place = self.place(entry)
        if not place.is_file() or _sha256(place) != entry.sha256:
            raise InputError(f"journal {self.folder}: {entry.artifact} is not what was kept; delete it to give all up")
        return place

    def drop(self) -> None:
        """Forget the oldest entry: the store has it. With the last one the folder goes; before, all can be delivered again."""
        self.waiting.popleft()
        if not self.waiting:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.waiting.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, entry: Entry) -> list[Path]:
        """Put an entry behind the others; returns the files of those that it makes void."""
        void = [before for before in self.waiting if entry.artifact and before.artifact == entry.artifact]
        if void:
            self.waiting = deque(before for before in self.waiting if before not in void)
        self.waiting.append(entry)
        needed = {self.place(left) for left in self.waiting}  # the same file may have been written again
        return [place for before in void if (place := self.place(before)) not in needed]

    def _read(self) -> list[Entry]:
        if not self.file.is_file():
            return []
        text = self.file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # its process was killed in the middle of a line
            os.truncate(self.file, len(whole))
        entries = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entries.append(Entry.model_validate_json(line))
            except ValidationError as error:
                why = error.errors()[0]["msg"]
                raise InputError(f"journal {self.file}, line {number}: {why}; delete {self.folder} to give all up") from None
        return entries


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file on the disk, not only in the machine's memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""Brings what a run has for the store there; while the store is away, it is kept in the run's journal, in order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness import outage
from harness.errors import StoreAway, WriteError
from harness.journal import Entry, Journal
from harness.numerics import option
from harness.store import Store


@dataclass(frozen=True)
class Delivery:
    """The way of one run's writes to the store. Only a run that this process holds has a journal."""

    store: Store
    run_id: str

    def write(self, entry: Entry, content: Path | None = None) -> None:
        """Write to the store; while it does not answer, to the journal. What is in the journal already goes first."""
        journal = self.store.journals.get(self.run_id)
        if journal is None:
            return self.store.send(self.run_id, entry, content)
        if not self.deliver():
            return self._keep(journal, entry, content)
        try:
            self.store.send(self.run_id, entry, content)
        except StoreAway as away:
            self._keep(journal, entry, content)
            self.store.say(f"kept     {away}")
            self.store.say(f"         what it has not got waits in {journal.folder}")

    def _keep(self, journal: Journal, entry: Entry, content: Path | None) -> None:
        """Put an entry into the journal. Raises WriteError where the disk does not take it either."""
        try:
            journal.add(entry, content)
        except OSError as error:
            why = f"what it has not got cannot be kept in {journal.folder}: {error.strerror or error}"
            raise WriteError(f"store {self.store.uri} does not answer, and {why}") from error

    def deliver(self, seconds: float = outage.SHARE) -> bool:
        """Give the store what waits for it, in order and for about so long; whether that was all."""
        if not (journal := self.store.journals.get(self.run_id)) or not journal.waiting:
            return True
        end = time.monotonic() + seconds
        with suppress(StoreAway):
            while journal.waiting and time.monotonic() < end:
                entry = journal.waiting[0]
                self.store.send(self.run_id, entry, journal.content(entry) if entry.artifact else None)
                journal.drop()
        if journal.waiting:
            return False
        self.store.say("back     the store answers again and has got all")
        return True

    def insist(self, call: Callable[[], object] = lambda: None) -> None:
        """Do what cannot be kept: behind all that was, and for a minute again while the store does not answer."""

        def behind() -> None:
            if not self.deliver(math.inf):
                raise StoreAway(f"store {self.store.uri} does not answer")
            call()

        try:
            self.store.outage.outlasted(behind)
        except StoreAway as away:
            journal = self.store.journals.get(self.run_id)
            if not journal or not journal.waiting:
                raise
            how = f"`harness train --resume {self.run_id}{option()}` delivers it and goes on; so does its study, launched again"
            raise StoreAway(f"{away}; what it has not got waits in {journal.folder}: {how}") from None

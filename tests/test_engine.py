"""Work that is spread: done by the processes that trained, here where there are none, and done in any case."""

from __future__ import annotations

import os
import time

import pytest

from harness import engine


def test_without_workers_it_is_done_here_and_in_order() -> None:
    with engine.opened(2, None, []) as hands:
        assert hands.spread(lambda item: (item, os.getpid()), "abc") == [(item, os.getpid()) for item in "abc"]


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_processes_train_as_were_asked_for_however_many_cores_there_are(count: int) -> None:
    with engine.opened(count, None, []) as hands:
        assert len(hands._local(count).nthreads()) == count


def test_what_is_wrong_with_it_is_heard() -> None:
    with engine.opened(0, None, []) as hands, pytest.raises(ZeroDivisionError):
        hands.spread(lambda item: 1 / item, [1, 0])


@pytest.mark.slow
def test_workers_do_it_and_where_they_die_of_it_this_process_does() -> None:
    here = os.getpid()

    def deadly(item: int) -> int:
        if os.getpid() != here:
            os._exit(1)
        return item

    with engine.opened(2, None, []) as hands:
        hands._local(2)
        came = hands.spread(lambda item: (item, os.getpid()), range(8))
        assert [item for item, _ in came] == list(range(8))
        assert here not in {process for _, process in came}
        assert hands.spread(deadly, [3, 1, 2]) == [3, 1, 2]
        assert hands.cluster
        assert hands.client
        hands.cluster.scale(0)
        end = time.monotonic() + 60
        while hands.client.nthreads():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert hands.spread(lambda item: (item, os.getpid()), [1]) == [(1, here)]
        with pytest.raises(ZeroDivisionError):
            hands.spread(lambda item: 1 / item, [1, 0])

"""Named streams of randomness: each draw comes from (seed, purpose, index), never from global state.

NumPy draws, not torch: torch's CPU generator keeps 32 bits of its seed, so that among 100,000 streams two are likely
to coincide, and its normal numbers depend on the CPU's vector width.
"""

from __future__ import annotations

from numpy.random import PCG64, Generator, SeedSequence

VERSION = 1
STREAMS = {"init": 0, "shuffle": 1, "dropout": 2, "subset": 3, "probe": 4}  # numbers are part of every result: append only


def stream(seed: int, name: str, *index: int) -> Generator:
    """The generator for one purpose of one seed, e.g. `stream(0, "shuffle", epoch)`.

    SeedSequence hashes (seed, name, index) to 128 bits: a stream can be had again at any time by naming it, without
    drawing the ones before it. Raises KeyError for a name that is not in STREAMS.
    """
    return Generator(PCG64(SeedSequence(seed, spawn_key=(VERSION, STREAMS[name], *index))))

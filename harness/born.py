"""What workers are born with: the process that they are forks of imports this, once for all of them.

It is the one module that does something by being imported: `forkserver` offers no other moment.
"""

from __future__ import annotations

from contextlib import suppress

from harness.imports import uncollected

with uncollected():
    from harness import curves, distributions, engine, forest, interactions, plots, vitals  # noqa: F401, I001
    from harness.config import RunConfig
    from harness.record import code, software
    from harness.sources import code_digest

    # a store imports the first when it is opened, a study the second at its end
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import statsmodels.regression.linear_model  # noqa: F401

    with suppress(Exception):  # each run's record asks for them; what is wrong with them a run tells
        code(), software(), code_digest(RunConfig())

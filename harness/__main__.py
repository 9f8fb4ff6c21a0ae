"""`python -m harness` is the command `harness`."""

import os
import sys


def run() -> None:
    """The command line, interrupted or not: until it is imported Python would answer Ctrl-C with a traceback."""
    try:
        from harness.cli import run as command
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        os._exit(130)
    command()


if __name__ == "__main__":
    run()

"""`python -m harness` is the command `harness`."""

from harness.cli import run

if __name__ == "__main__":
    run()

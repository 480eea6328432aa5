"""The command line, one file a command; `main` runs it and returns the exit code."""

from coupled_sampling.cli.entry import main

__all__ = ["main"]

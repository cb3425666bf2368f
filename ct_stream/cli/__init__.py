"""The command line of ct-stream."""

from ct_stream.cli.program import main

__all__ = ["main"]

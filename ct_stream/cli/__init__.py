"""ct-stream: what can a person ask of the gate, and tell it?"""

from ct_stream.cli.program import main

__all__ = ["main"]

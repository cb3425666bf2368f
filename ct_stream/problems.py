"""What is wrong, and what to do about it: the two halves of every error that a person is shown.

Printed, a problem is one line. Code that needs one half takes the field and never splits the line.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

#: Errors that mean this machine has run out of something: descriptors, buffers, memory, local ports.
RUN_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that a person can put right."""

    what: str  #: what is wrong, and which one
    action: str = ""  #: what to do about it; empty where only the reader can know

    def __str__(self) -> str:
        return f"{self.what}; {self.action}" if self.action else self.what


class ProblemError(Exception):
    """This code cannot go on before somebody puts `problem` right."""

    def __init__(self, what: str, action: str = "") -> None:
        self.problem = Problem(what=what, action=action)
        super().__init__(str(self.problem))


def said_by(error: BaseException) -> str:
    """Return what an error says of itself, or its type: time-outs and many others say nothing."""
    return str(error).strip() or type(error).__name__

"""How often does Python look for cycles among the objects of all passes?

Reference counting frees nearly all that a pass leaves behind. At Python's own pace (each 700 new objects, now and then
all of them, the imported modules too) the collector took 7 % of a worker's CPU with 500 passes in flight, and stopped
them all for up to 240 ms.
"""

from __future__ import annotations

import gc

_NEW_OBJECTS = 2000  #: between two looks at the young ones
_YOUNG_LOOKS, _MIDDLE_LOOKS = 10, 50


def collect_seldom() -> None:
    """Leave out for good what is there now (modules, settings), and look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, _YOUNG_LOOKS, _MIDDLE_LOOKS)

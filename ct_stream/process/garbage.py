"""Makes Python look for reference cycles less often.

Reference counting frees nearly everything that a pass leaves behind. At Python's default pace (after each 700 new
objects, and now and then over all of them, the imported modules included) the collector took 7 % of a worker's CPU with
500 passes in flight, and stopped them all for up to 240 ms.
"""

from __future__ import annotations

import gc

_NEW_OBJECTS = 2000  #: between two looks at the young ones
_YOUNG_LOOKS, _MIDDLE_LOOKS = 10, 50


def collect_seldom() -> None:
    """Exclude for good what exists now (modules, settings), and look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, _YOUNG_LOOKS, _MIDDLE_LOOKS)

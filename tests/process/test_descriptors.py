"""What fits into the descriptors that the system lets a worker open?"""

from __future__ import annotations

import pytest

from ct_stream.probes.mx import MAX_ASKING
from ct_stream.process.descriptors import LEAST, room


@pytest.mark.parametrize(
    ("descriptors", "in_flight", "asking"),
    [(LEAST, 24, 8), (256, 48, 16), (1024, 336, 112), (2048, 760, 200), (4096, 1000, 200), (1_048_576, 1000, 200)],
)
def test_every_pass_has_a_descriptor_for_its_session(descriptors: int, in_flight: int, asking: int) -> None:
    fits = room(1000, descriptors, most_asking=MAX_ASKING)
    assert (fits.in_flight, fits.asking) == (in_flight, asking)
    assert 2 * fits.in_flight + 2 * fits.asking < descriptors

"""Look at everything that the settings lead to: one line for each thing, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ct_stream.ops.doctor.kafka_checks import KAFKA
from ct_stream.ops.doctor.mail_checks import DNS, HELO, PORT_25
from ct_stream.ops.doctor.postgres_checks import POSTGRES_GATE, POSTGRES_MIGRATIONS, POSTGRES_PEOPLE
from ct_stream.ops.doctor.setting_checks import read_settings
from ct_stream.ops.doctor.vendor_checks import TIER2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ct_stream.ops.doctor.part import Check, Part

#: In the order in which they are printed.
PARTS: tuple[Part[Any], ...] = (KAFKA, POSTGRES_GATE, POSTGRES_PEOPLE, POSTGRES_MIGRATIONS, DNS, PORT_25, HELO, TIER2)


async def examine(environ: Mapping[str, str]) -> list[Check]:
    """Check the settings in `environ`, then all parts at once with those settings that can be used."""
    settings, checks = read_settings(environ)
    results = await asyncio.gather(*(part.look(settings) for part in PARTS))
    return [*checks, *(check for result in results for check in result)]

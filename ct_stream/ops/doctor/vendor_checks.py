"""Can the paid vendor be connected to? Nothing is asked of it: a request could cost money."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ct_stream.ops.doctor.part import Check, Part
from ct_stream.probes.tier2_vendors import make_vendor
from ct_stream.problems import said_by

if TYPE_CHECKING:
    from ct_stream.settings import Settings

_CONNECT_S = 10.0


async def _tier2(settings: Settings) -> Check:
    vendor = make_vendor(settings.tier2_provider, settings.tier2_url, settings.tier2_api_key)
    if vendor is None:
        return Check(name="Tier-2", ok=None, detail="off: CT_TIER2_PROVIDER is none")
    url = urlsplit(vendor.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    where = f"{vendor.name} at {url.hostname} port {port}"
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(url.hostname, port, ssl=url.scheme == "https")
            writer.transport.abort()  # a vendor that does not say goodbye is not waited for
    except (OSError, TimeoutError) as error:
        return Check(
            name="Tier-2",
            ok=False,
            detail=f"{where} accepts no connection: {said_by(error)}",
            action="correct CT_TIER2_URL, or allow connections to it",
        )
    key = "" if vendor.secret else "; no CT_TIER2_API_KEY, which is right only for a back end without a secret"
    return Check(name="Tier-2", ok=True, detail=f"{where} answers; it was asked nothing, since that costs money{key}")


TIER2 = Part(name="Tier-2", connect=nullcontext, checks=(_tier2,))

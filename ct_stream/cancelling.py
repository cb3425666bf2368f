"""Cancel tasks so that they end: one request to cancel may be lost inside a library.

In Python 3.11 asyncio.wait_for returns its result in the place of a cancellation that comes in the same moment
(CPython issue 86296, mended in 3.12). And what waits for a task that it has itself cancelled takes our cancellation for
that one's end, as aiokafka's close() does.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

Result = TypeVar("Result")

_TIDIES_S = 2.0


async def end_all(tasks: Iterable[asyncio.Task[Any]], tidies_s: float = _TIDIES_S) -> None:
    """Cancel the tasks and return when all have ended; how they end is not looked at.

    A task that has not ended `tidies_s` seconds after a request gets another one, so this must be longer than what it
    still does in order.
    """
    all_of_them = set(tasks)
    running = {task for task in all_of_them if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=tidies_s)
    for task in all_of_them:
        _ = task.cancelled() or task.exception()  # else the loop logs that nobody has asked


async def until_a_signal(work: Coroutine[Any, Any, Result], tidies_s: float = _TIDIES_S) -> Result:
    """Return what `work` returns; SIGTERM ends it in order, as Ctrl-C does. To be the main task of asyncio.run.

    Raises what `work` raises, also while it ends. Else asyncio.CancelledError after SIGTERM; asyncio.run turns it into
    KeyboardInterrupt after Ctrl-C. A second signal does not wait for `work` to end.
    """
    main = asyncio.current_task()
    assert main is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await end_all([task], tidies_s)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error from None
        raise
    return task.result()

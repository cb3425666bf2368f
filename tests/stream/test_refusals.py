"""A look at a broker leaves no socket open, however the broker behaves; the rest is in tests/kafka/test_refusals.py."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trustme
from aiokafka.errors import KafkaConnectionError

from ct_stream.settings import load_settings
from ct_stream.stream import refusals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


@contextmanager
def silent_broker(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run one that completes TLS and then neither answers nor says goodbye; yield the settings that lead to it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    met: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                met.append(context.wrap_socket(client, server_side=True))
            except OSError:
                client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield {
                "CT_KAFKA_BOOTSTRAP": f"127.0.0.1:{listener.getsockname()[1]}",
                "CT_KAFKA_SECURITY_PROTOCOL": "SSL",
                "CT_KAFKA_SSL_CAFILE": str(tmp_path / "ca"),
            }
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in met:
                client.close()


def test_no_socket_stays_open_where_a_broker_does_not_say_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_STEP_S", 0.3)
    gc.collect()
    with silent_broker(tmp_path) as env, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problem = asyncio.run(refusals.explain(load_settings(env), KafkaConnectionError("nothing")))
        gc.collect()
    assert "ends our TLS connection" in problem.what, problem
    assert [str(warning.message) for warning in caught] == []

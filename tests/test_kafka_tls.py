"""An encrypted client key is opened or refused, and nobody is asked for its passphrase; each wrong file is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path  # noqa: TC003 - pytest reads the annotation

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from ct_stream.settings import SettingsError, load_settings
from ct_stream.stream.topology import kafka_options

PASSPHRASE = "open-sesame-4711"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Write an authority, a certificate, and its key encrypted; return the settings that name them."""
    authority = trustme.CA()
    certificate = authority.issue_cert("gate@client.example")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSPHRASE.encode()),
    )
    files = {
        "CAFILE": authority.cert_pem.bytes(),
        "CERTFILE": certificate.cert_chain_pems[0].bytes(),
        "KEYFILE": encrypted,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "open-key").write_bytes(certificate.private_key_pem.bytes())
    named = {f"CT_KAFKA_SSL_{name}": str(tmp_path / name) for name in files}
    return named | {"CT_KAFKA_SECURITY_PROTOCOL": "SSL", "CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}


def wrong(env: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(env)
    return str(caught.value)


def test_an_encrypted_key_is_refused_with_what_to_do(env: dict[str, str]) -> None:
    assert wrong(env) == (
        f"CT_KAFKA_SSL_KEYFILE '{env['CT_KAFKA_SSL_KEYFILE']}' is encrypted, and nobody can be asked for its "
        "passphrase; set CT_KAFKA_SSL_PASSWORD_FILE to a file that holds it, or decrypt the key with `openssl pkey`"
    )


def test_an_encrypted_key_never_prompts(env: dict[str, str]) -> None:
    """OpenSSL would ask on the terminal, not on standard input: so there is a terminal here, and nobody at it."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0):
        result = subprocess.run(
            [sys.executable, "-m", "ct_stream", "lag"],
            env={"PATH": os.environ["PATH"]} | env,
            stdin=theirs,
            capture_output=True,
            timeout=30,
            check=False,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
    assert result.returncode == 64, result.stderr
    assert b"is encrypted, and nobody can be asked" in result.stderr
    assert b"Enter PEM pass phrase" not in result.stdout + result.stderr


def _take_terminal() -> None:
    """Make standard input the terminal of this session."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_the_right_passphrase_opens_it_and_a_wrong_one_is_not_quoted(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    settings = load_settings(env | {"CT_KAFKA_SSL_PASSWORD_FILE": str(tmp_path / "passphrase")})
    assert kafka_options(settings)["ssl_context"] is not None
    assert PASSPHRASE not in repr(settings)
    said = wrong(env | {"CT_KAFKA_SSL_PASSWORD": "not-it-4711"})
    assert said.startswith("CT_KAFKA_SSL_PASSWORD is not the passphrase of ")
    assert "not-it-4711" not in said


def test_a_key_in_the_clear_needs_no_passphrase(env: dict[str, str], tmp_path: Path) -> None:
    load_settings(env | {"CT_KAFKA_SSL_KEYFILE": str(tmp_path / "open-key")})


def test_a_file_that_holds_something_else_is_named(env: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("nothing\n")
    assert wrong(env | {"CT_KAFKA_SSL_CAFILE": str(empty)}).startswith(
        f"CT_KAFKA_SSL_CAFILE '{empty}' cannot be read: "
    )
    clear = {"CT_KAFKA_SSL_KEYFILE": str(tmp_path / "open-key")}
    assert wrong(env | clear | {"CT_KAFKA_SSL_CERTFILE": str(empty)}).startswith(f"CT_KAFKA_SSL_CERTFILE '{empty}' and")
    other = trustme.CA().issue_cert("other@client.example")
    other.cert_chain_pems[0].write_to_path(str(tmp_path / "other"))
    assert "key values mismatch" in wrong(env | clear | {"CT_KAFKA_SSL_CERTFILE": str(tmp_path / "other")})
    del env["CT_KAFKA_SSL_CERTFILE"]
    assert wrong(env).startswith("CT_KAFKA_SSL_CERTFILE is not set; CT_KAFKA_SSL_KEYFILE needs it")

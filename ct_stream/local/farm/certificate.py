"""The certificates of the farm's servers: a self-signed one that nobody trusts, and those of control domains."""

import ssl
import tempfile
from functools import cache
from pathlib import Path

from ct_stream.local.farm.scenarios import Tls

#: The farm's own authority, for CT_CONTROL_CA_FILE. Its key is gone, and it may sign names below .example alone.
AUTHORITY = Path(__file__).with_name("authority.pem")

# Public knowledge, kept here so that the farm needs neither openssl nor a library to make one. It protects nothing.
# For another name, signed by itself, as badly run mail servers show it:
_SELF_SIGNED = (
    "MIIBGDCBv6ADAgECAgEBMAoGCCqGSM49BAMCMBUxEzARBgNVBAMMCm14LmV4YW1wbGUwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAx"
    "MDEwMDAwMDBaMBUxEzARBgNVBAMMCm14LmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATJeEFN/fPDj1ig3tdRc3lZ"
    "+juB3s+XJyEcO7VHd2qwWzNMryWwP+M/tWFBucZygdLPOEK1bdnyV5SO+IEv7+hZMAoGCCqGSM49BAMCA0gAMEUCIG9bson8gSnf"
    "8VJE+ZR0DxChk6dw+zRHgLbjgAuzRfrFAiEAwr8zQu5s9dKt2WxJ2in2SX4pnEEite63PcFzRcoYBCw="
)
_SELF_SIGNED_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoo3IJH8/f8uhfgknoGzli8CUdFaDqcrT+tRBCLZuRJqhRANCAATJ"
    "eEFN/fPDj1ig3tdRc3lZ+juB3s+XJyEcO7VHd2qwWzNMryWwP+M/tWFBucZygdLPOEK1bdnyV5SO+IEv7+hZ"
)
# For control.example and *.control.example, signed by the authority: until 2120, and for one day of 2020.
_CONTROL = (
    "MIIBuzCCAWKgAwIBAgIBAzAKBggqhkjOPQQDAjAyMRwwGgYDVQQKDBNjdC1zdHJlYW0gbWFpbCBmYXJtMRIwEAYDVQQDDAlhdXRo"
    "b3JpdHkwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMAAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQaS+rLxx4v"
    "v8T362EdzsHVtXKQ8Z+frXaV8WXSKuZDpn1hFSEV87G5fezzDMCsje79TvuPcjRjaIYg9eQvugv6o4GYMIGVMAwGA1UdEwEB/wQC"
    "MAAwMAYDVR0RAQH/BCYwJIIPY29udHJvbC5leGFtcGxlghEqLmNvbnRyb2wuZXhhbXBsZTATBgNVHSUEDDAKBggrBgEFBQcDATAf"
    "BgNVHSMEGDAWgBThQ9Y/gDr1XmTckieyOuWKhhVCcjAdBgNVHQ4EFgQUybs91Cfu3z7Iyb9mhtY0BxV8LVAwCgYIKoZIzj0EAwID"
    "RwAwRAIgaGHpy8ShVhwHkkFRrn1kpRNy6jnJHsjpknCY0foQDuMCIBX2ZPNh5vwyOUcls3SyBNzdqvEv9joRTwRzWV034iJZ"
)
_EXPIRED = (
    "MIIBujCCAWCgAwIBAgIBBDAKBggqhkjOPQQDAjAyMRwwGgYDVQQKDBNjdC1zdHJlYW0gbWFpbCBmYXJtMRIwEAYDVQQDDAlhdXRo"
    "b3JpdHkwHhcNMjAwMTAxMDAwMDAwWhcNMjAwMTAyMDAwMDAwWjAAMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEGkvqy8ceL7/E"
    "9+thHc7B1bVykPGfn612lfFl0irmQ6Z9YRUhFfOxuX3s8wzArI3u/U77j3I0Y2iGIPXkL7oL+qOBmDCBlTAMBgNVHRMBAf8EAjAA"
    "MDAGA1UdEQEB/wQmMCSCD2NvbnRyb2wuZXhhbXBsZYIRKi5jb250cm9sLmV4YW1wbGUwEwYDVR0lBAwwCgYIKwYBBQUHAwEwHwYD"
    "VR0jBBgwFoAU4UPWP4A69V5k3JInsjrlioYVQnIwHQYDVR0OBBYEFMm7PdQn7t8+yMm/ZobWNAcVfC1QMAoGCCqGSM49BAMCA0gA"
    "MEUCIGBMJBGjnUyZTv4+LJUHo890Cfg1Fc+wBJy/zHoul8mxAiEAiZkwtmz3zoBILDhEZVHuBLpLZ/pkL+xzjF1eSUAzD0A="
)
_CONTROL_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgogDmOozVBZF7H0HpEA6V0TGDl2+Hh8Y2kZOfvLUvL6KhRANCAAQa"
    "S+rLxx4vv8T362EdzsHVtXKQ8Z+frXaV8WXSKuZDpn1hFSEV87G5fezzDMCsje79TvuPcjRjaIYg9eQvugv6"
)

_CHAINS = {
    Tls.WORKS: (_SELF_SIGNED, _SELF_SIGNED_KEY),
    Tls.SIGNED: (_CONTROL, _CONTROL_KEY),
    Tls.EXPIRED: (_EXPIRED, _CONTROL_KEY),
}


@cache
def server_context(tls: Tls) -> ssl.SSLContext:
    """Return the TLS side of the farm's servers of this kind."""
    certificate, key = _CHAINS[tls]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # load_cert_chain reads files only.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        for label, text in (("CERTIFICATE", certificate), ("PRIVATE KEY", key)):
            lines = [text[start : start + 64] for start in range(0, len(text), 64)]
            file.write("\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")))
        file.flush()
        context.load_cert_chain(file.name)
    return context

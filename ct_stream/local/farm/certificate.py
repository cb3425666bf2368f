"""Which certificate does a badly run mail server show? A self-signed one, for another name, that nobody trusts."""

import ssl
import tempfile

# Public knowledge, kept here so that the farm needs neither openssl nor a library to make one. It protects nothing.
_CERTIFICATE = (
    "MIIBGDCBv6ADAgECAgEBMAoGCCqGSM49BAMCMBUxEzARBgNVBAMMCm14LmV4YW1wbGUwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAx"
    "MDEwMDAwMDBaMBUxEzARBgNVBAMMCm14LmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATJeEFN/fPDj1ig3tdRc3lZ"
    "+juB3s+XJyEcO7VHd2qwWzNMryWwP+M/tWFBucZygdLPOEK1bdnyV5SO+IEv7+hZMAoGCCqGSM49BAMCA0gAMEUCIG9bson8gSnf"
    "8VJE+ZR0DxChk6dw+zRHgLbjgAuzRfrFAiEAwr8zQu5s9dKt2WxJ2in2SX4pnEEite63PcFzRcoYBCw="
)
_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoo3IJH8/f8uhfgknoGzli8CUdFaDqcrT+tRBCLZuRJqhRANCAATJ"
    "eEFN/fPDj1ig3tdRc3lZ+juB3s+XJyEcO7VHd2qwWzNMryWwP+M/tWFBucZygdLPOEK1bdnyV5SO+IEv7+hZ"
)


def server_context() -> ssl.SSLContext:
    """Return the TLS side of the farm's servers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # load_cert_chain reads files only.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        for label, text in (("CERTIFICATE", _CERTIFICATE), ("PRIVATE KEY", _KEY)):
            lines = [text[start : start + 64] for start in range(0, len(text), 64)]
            file.write("\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")))
        file.flush()
        context.load_cert_chain(file.name)
    return context

"""One Postfix with a listener for each way in which its operators set it up; postgrey beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.mta.dns import LAB
from tests.mta.packages import ROOT
from tests.mta.servers import Server, environment

_POSTGREY_PORT = 10023
_QUEUES = [
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop"),
    *("pid", "private", "public", "saved", "trace"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """An address with the options that differ from main.cf (postconf(5))."""

    ip: str
    options: tuple[str, ...] = ()
    is_postscreen: bool = False


#: By the name of the domain whose MX it is.
LISTENERS = {
    "plain": Listener(ip="127.66.1.1"),
    "v6": Listener(ip="::1"),
    "postscreen": Listener(ip="127.66.1.2", is_postscreen=True),
    "deep": Listener(
        ip="127.66.1.15",
        options=("postscreen_bare_newline_enable=yes", "postscreen_cache_map=btree:$data_directory/deep"),
        is_postscreen=True,
    ),
    "postgrey": Listener(
        ip="127.66.1.3", options=(f"smtpd_recipient_restrictions=check_policy_service,inet:127.0.0.1:{_POSTGREY_PORT}",)
    ),
    "verify": Listener(
        ip="127.66.1.4",
        options=(
            "smtpd_reject_unlisted_recipient=no",
            "smtpd_recipient_restrictions=reject_unverified_recipient",
            "unverified_recipient_reject_code=550",
        ),
    ),
    "verify450": Listener(
        ip="127.66.1.5",
        options=("smtpd_reject_unlisted_recipient=no", "smtpd_recipient_restrictions=reject_unverified_recipient"),
    ),
    "limits": Listener(ip="127.66.1.6", options=("smtpd_soft_error_limit=2", "smtpd_hard_error_limit=4")),
    "client": Listener(
        ip="127.66.1.7",
        options=("smtpd_client_restrictions=check_client_access,static:REJECT", "smtpd_delay_reject=no"),
    ),
    "list": Listener(ip="127.66.1.8", options=(f"smtpd_client_restrictions=reject_rbl_client,list.{LAB}",)),
    "sender": Listener(ip="127.66.1.9", options=("smtpd_sender_restrictions=reject_unknown_sender_domain",)),
    "tls": Listener(ip="127.66.1.10", options=("smtpd_tls_security_level=encrypt",)),
    "catchall": Listener(ip="127.66.1.11"),
    "nobody": Listener(ip="127.66.1.12"),
    "full": Listener(
        ip="127.66.1.13",
        options=("smtpd_recipient_restrictions=check_recipient_access,texthash:$config_directory/recipients",),
    ),
    "norelay": Listener(ip="127.66.1.14"),
}
#: Who lives where; "@" takes everybody. At `nobody` and `norelay` lives nobody.
_MAILBOXES = [
    *(f"info@{name}.{LAB}" for name in LISTENERS if name not in ("catchall", "nobody", "norelay")),
    f"@catchall.{LAB}",
    f"info@signed.{LAB}",
    "info@signed.example",
    f"info@big.{LAB}",
]


def start(folder: Path, port: int, nameserver: str, certificate: Path) -> list[Server]:
    """Start postgrey and Postfix; come back when all listeners answer. Their own users must get to `folder`."""
    env = environment("postfix", folder, nameserver=nameserver) | {"MAIL_CONFIG": str(folder)}
    postgrey = _postgrey(folder, env)
    sbin, lib = ROOT / "postfix/usr/sbin", ROOT / "postfix/usr/lib/postfix"
    queue, data = folder / "queue", folder / "data"
    private = [
        "active",
        "bounce",
        "corrupt",
        "defer",
        "deferred",
        "flush",
        "hold",
        "incoming",
        "pid",
        "private",
        "saved",
        "trace",
    ]
    for name in (*private, "public", "maildrop"):
        (queue / name).mkdir(parents=True)
        os.chown(queue / name, 64001, 64011 if name in ("public", "maildrop") else -1)
        (queue / name).chmod(0o730 if name == "maildrop" else 0o710 if name == "public" else 0o700)
    os.chown(queue / "pid", 0, 0)
    data.mkdir(mode=0o700)
    os.chown(data, 64001, -1)
    (folder / "mailboxes").write_text("".join(f"{address} here\n" for address in _MAILBOXES))
    (folder / "recipients").write_text(f"info@full.{LAB} 452 4.2.2 The email account is over quota\n")
    domains = [f"{name}.{LAB}" for name in LISTENERS if name != "norelay"]
    domains += [f"signed.{LAB}", "signed.example", f"big.{LAB}", f"control.{LAB}"]
    settings = {
        "compatibility_level": "3.6",
        "maillog_file": f"{folder}/postfix.maillog",
        "maillog_file_prefixes": str(folder),
        "queue_directory": str(queue),
        "data_directory": str(data),
        "command_directory": str(sbin),
        "daemon_directory": str(lib / "sbin"),
        "shlib_directory": str(lib),
        "meta_directory": str(folder),
        "mail_owner": "postfix",
        "setgid_group": "postdrop",
        "myhostname": f"mx.plain.{LAB}",
        "mydestination": "",
        "mynetworks": "192.0.2.0/24",  # nobody: loopback is treated as any stranger
        "inet_protocols": "all",
        "alias_maps": "",
        "local_recipient_maps": "",
        "virtual_mailbox_domains": " ".join(domains),
        "virtual_mailbox_maps": f"texthash:{folder}/mailboxes",
        "virtual_mailbox_base": str(folder),
        "virtual_uid_maps": "static:64010",
        "virtual_gid_maps": "static:64010",
        "smtpd_tls_security_level": "may",
        "smtpd_tls_chain_files": str(certificate),
        "smtpd_tls_loglevel": "1",
        "import_environment": " ".join([*(name for name in env if name != "MAIL_CONFIG"), "MAIL_CONFIG"]),
        "postscreen_access_list": "",
        "postscreen_greet_wait": "2s",
        "postscreen_greet_action": "enforce",
        "postscreen_cache_map": f"btree:{data}/postscreen",
        "postscreen_upstream_proxy_protocol": "",
    }
    (folder / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    (folder / "master.cf").write_text(_master(port))
    (folder / "dynamicmaps.cf").write_text("")
    # master(8) in the foreground, as `postfix start-fg` has it.
    server = Server("postfix", [str(lib / "sbin/master"), "-c", str(folder), "-s"], folder, env)
    server.wait_for(*((listener.ip, port) for listener in LISTENERS.values()))
    return [postgrey, server]


def maillog(folder: Path) -> str:
    """Return what Postfix logged, for a test that fails."""
    path = folder / "postfix.maillog"
    return path.read_text(errors="replace") if path.exists() else ""


def _master(port: int) -> str:
    lines = [
        "postlog unix-dgram n - n - 1 postlogd",
        "smtpd pass - - n - - smtpd",
        "tlsproxy unix - - n - 0 tlsproxy",
        "dnsblog unix - - n - 0 dnsblog",
        "cleanup unix n - n - 0 cleanup",
        "qmgr unix n - n 300 1 qmgr",
        "tlsmgr unix - - n 1000? 1 tlsmgr",
        "rewrite unix - - n - - trivial-rewrite",
        "bounce unix - - n - 0 bounce",
        "defer unix - - n - 0 bounce",
        "trace unix - - n - 0 bounce",
        "verify unix - - n - 1 verify",
        "proxymap unix - - n - - proxymap",
        "smtp unix - - n - - smtp",
        "error unix - - n - - error",
        "retry unix - - n - - error",
        "virtual unix - n n - - virtual",
        "anvil unix - - n - 1 anvil",
        "scache unix - - n - 1 scache",
    ]
    for listener in LISTENERS.values():
        ip = f"[{listener.ip}]" if ":" in listener.ip else listener.ip
        program = "1 postscreen" if listener.is_postscreen else "- smtpd"
        lines.append(f"{ip}:{port} inet n - n - {program}")
        lines += [f"  -o {option}" for option in listener.options]
    return "\n".join(lines) + "\n"


def _postgrey(folder: Path, env: dict[str, str]) -> Server:
    root = ROOT / "postfix"
    data = folder / "postgrey"
    data.mkdir()
    os.chown(data, 64002, 64002)
    perl = shutil.which("perl") or str(root / "usr/bin/perl")
    version = subprocess.run([perl, "-e", "print $^V"], capture_output=True, text=True, check=True).stdout
    short = ".".join(version.lstrip("v").split(".")[:2])
    arch = Path(env["LD_LIBRARY_PATH"].split(":")[0]).name
    folders = [root / "usr/share/perl5", root / f"usr/lib/{arch}/perl5/{short}", root / f"usr/share/perl/{short}",
               root / f"usr/lib/{arch}/perl/{short}", root / f"usr/lib/{arch}/perl-base"]  # fmt: skip
    lists = root / "usr/share/postgrey"
    server = Server(
        "postgrey",
        [
            perl, "-T", *(f"-I{path}" for path in folders if path.exists()), str(root / "usr/sbin/postgrey"),
            f"--inet=127.0.0.1:{_POSTGREY_PORT}", f"--dbdir={data}", f"--pidfile={data}/pid", "--user=postgrey",
            "--group=postgrey", f"--whitelist-clients={lists}/whitelist_clients",
            f"--whitelist-recipients={lists}/whitelist_recipients",
        ],
        folder,
        env,
    )  # fmt: skip
    server.wait_for(("127.0.0.1", _POSTGREY_PORT))
    return server

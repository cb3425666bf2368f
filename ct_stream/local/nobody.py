"""Started by root, servers run as nobody: what they may reach, and which files stay root's.

A server that is broken into must not become root. So it owns its data and nothing beside it: in a folder that it owns
it could put links in the place of the files that root opens there. Broker and Postgres share that user.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ct_stream.local.processes import LocalError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOBODY = 65534  #: the overflow uid and gid, there on every Linux without making a user
SHARED_TMP = Path("/var/tmp")  #: open to every uid, as the temporary folders of test runners are not
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  #: nothing of root's own, which may hold secrets


def servers_uid() -> int | None:
    """Return the uid and gid that servers run as; None: as ourselves."""
    return _NOBODY if os.geteuid() == 0 else None


def can_enter(path: Path, uid: int | None) -> bool:
    """Can `uid` (None: ourselves) walk down to `path`? Others' execute bit is what counts for nobody."""
    if uid is None:
        return True
    path = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def give(path: Path, uid: int | None) -> None:
    """Make `uid` the owner of a folder that we have made; None: it stays ours."""
    if uid is not None:
        os.chown(path, uid, uid)


def open_way(home: Path, uid: int | None) -> None:
    """Let the server's user pass through this folder to its own, and let nobody else in."""
    if uid is not None:
        os.chown(home, -1, uid)
        home.chmod(0o710)


def require_ours(path: Path) -> None:
    """Raise LocalError unless this folder is ours, and nobody else may write in it.

    Anybody may make a folder in /var/tmp, also with the name of an earlier one that was cleaned away.
    """
    made = path.lstat()
    if not stat.S_ISDIR(made.st_mode) or made.st_uid != os.geteuid() or made.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LocalError(
            f"{path} belongs to another user, or can be written by others; if it is an older version's own, "
            f"`chown root {path} && chmod 711 {path}` keeps its data, otherwise remove it"
        )


def reachable(root: Path, parts: Sequence[Path], name: str, uid: int | None) -> Path:
    """Return a folder from which `uid` can run the programs below `parts` of `root`: `root`, or a copy of them.

    A virtual environment below /root is closed to every other uid, and opening /root is not ours to do. `name`: of the
    copy, with the version.
    """
    if all(can_enter(part if part.is_dir() else part.parent, uid) for part in parts):
        return root
    copy = SHARED_TMP / f"ct-stream-{name}"
    if not copy.exists():
        try:
            making = Path(tempfile.mkdtemp(prefix="ct-stream-copy-", dir=SHARED_TMP))
        except OSError as error:
            raise LocalError(f"no copy of {root} that other users can reach can be made: {error}") from error
        for part in parts:
            target = making / part.relative_to(root)
            if part.is_dir():
                shutil.copytree(part, target, symlinks=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(part, target)
        for path in (making, *making.rglob("*")):  # whatever the umask is, and however the wheel was installed
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
        try:
            making.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(making, ignore_errors=True)
    require_ours(copy)
    return copy

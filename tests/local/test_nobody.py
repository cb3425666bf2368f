"""What servers that root starts may reach."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from ct_stream.local import nobody
from ct_stream.local.processes import LocalError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_copy_can_be_run_by_others_whatever_the_umask_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "closed" / "package" / "bin" / "server"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    (tmp_path / "closed").chmod(0o700)
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(nobody, "SHARED_TMP", shared)
    before = os.umask(0o077)
    try:
        copy = nobody.reachable(tmp_path / "closed", (program,), "server-1", 65534)
    finally:
        os.umask(before)
    assert copy == shared / "ct-stream-server-1"
    for path in (copy, copy / "package", copy / "package" / "bin", copy / "package" / "bin" / "server"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_without_a_shared_folder_the_error_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    monkeypatch.setattr(nobody, "SHARED_TMP", tmp_path / "not there")
    with pytest.raises(LocalError, match=r"no copy of .* that other users can reach can be made"):
        nobody.reachable(tmp_path / "closed", (tmp_path / "closed",), "server-1", 65534)

"""Another version is one whose files differ, whatever its number says."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING

from ct_stream.process.identity import digest_of, our_version

if TYPE_CHECKING:
    from pathlib import Path


def test_the_version_names_the_installed_number_and_the_files() -> None:
    assert re.fullmatch(re.escape(version("ct-stream")) + r"\+[0-9a-f]{8}", our_version())


def test_any_change_of_a_file_makes_another_version_and_what_python_compiles_does_not(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "store" / "b.sql").write_text("two")
    seen = {digest_of(tmp_path)}
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.cpython-311.pyc").write_text("compiled")
    (tmp_path / ".#a.py").symlink_to("somebody@edits")  # an editor's lock
    assert digest_of(tmp_path) in seen
    (tmp_path / "store" / "b.sql").write_text("mended")
    seen.add(digest_of(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    seen.add(digest_of(tmp_path))
    (tmp_path / "store" / "b.sql").write_text("mendedone")
    (tmp_path / "c.py").write_text("")
    seen.add(digest_of(tmp_path))
    assert len(seen) == 4

"""Labelled replies are compared with what the rules read; a lost company is told apart from every other difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ct_stream.ops.troubles import WrongInput
from tools.score_replies import main, score

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "stage\tcode\tenhanced\ttext\tsays\talso\n"
NO_SUCH_USER = "rcpt\t550\t5.1.1\tNo such user\t"
OPTIONS = ["--label", "says", "--or", "also"]


def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *rows: str) -> int:
    file = tmp_path / "labelled.tsv"
    file.write_text(HEADER + "\n".join(rows))
    monkeypatch.setattr("sys.argv", ["score_replies", str(file), *OPTIONS])
    return main()


def test_a_reject_that_no_label_calls_one_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scored(tmp_path, monkeypatch, NO_SUCH_USER + "reject\t", NO_SUCH_USER + "inconclusive\t") == 1
    said = capsys.readouterr().out
    assert "labelled inconclusive: rcpt 550 5.1.1 No such user" in said
    assert "2 replies: 1 exact, 1 exact or alternative (50.0%)" in said


def test_another_label_will_do_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scored(tmp_path, monkeypatch, NO_SUCH_USER + "inconclusive\treject") == 0


def test_a_misspelt_label_is_named_and_scores_nothing() -> None:
    with pytest.raises(WrongInput, match="reply 2: says 'rejct' is none of accept, reject"):
        score([{"meaning": "reject", "says": word} for word in ("reject", "rejct")], "labelled.tsv", label="says")

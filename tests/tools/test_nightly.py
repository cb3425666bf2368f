"""The nightly run says first what it lacks, runs each part whatever becomes of the others, and holds only if all do."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tools import needs, nightly
from tools.needs import lacks
from tools.nightly import Part


def part(script: str, **named: object) -> Part:
    made = Part(shows="something", minutes=2, command=lambda minutes: ("sh", "-c", script, f"{minutes:g}"),
                takes=lambda minutes: minutes + 1)  # fmt: skip
    return replace(made, **named)  # type: ignore[arg-type]


def night(monkeypatch: pytest.MonkeyPatch, parts: dict[str, Part], *options: str) -> int:
    monkeypatch.setattr(nightly, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["nightly", *options])
    return nightly.main()


def test_a_part_that_fails_or_cannot_run_keeps_no_other_from_running(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = part("true", lacks=lambda: lacks("nft-of-nobody"))
    monkeypatch.setitem(needs.PACKAGES, "nft-of-nobody", "nftables")
    assert night(monkeypatch, {"soak": part("exit 3"), "outages": absent, "fuzz": part("echo it ran")}) == 1
    said = capfd.readouterr().out
    assert said.index("outages cannot run here: it lacks nft-of-nobody: apt-get install nftables") < said.index("===")
    assert "it ran" in said
    assert re.search(r"^soak +0:00 +BROKEN \(exit code 3\)$", said, re.MULTILINE)
    assert re.search(r"^outages +0:00 +NOT RUN: lacks nft-of-nobody", said, re.MULTILINE)
    assert re.search(r"^fuzz +0:00 +holds$", said, re.MULTILINE)


def test_what_is_chosen_runs_for_the_minutes_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -- MINUTES=soak=7 ONLY=soak")
    monkeypatch.setenv("ONLY", "soak")
    parts = {"soak": part('echo "for $0, <$MAKEFLAGS$ONLY>"'), "fuzz": part("exit 1")}
    assert night(monkeypatch, parts, "--only", "soak", "--minutes", "soak=7") == 0
    said = capfd.readouterr().out
    assert "for 7, <>" in said
    assert "in all        8 min" in said
    assert "fuzz" not in said


@pytest.mark.parametrize("options", [("--only", "soap"), ("--minutes", "soap=1"), ("--minutes", "verify=1")])
def test_a_part_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit):
        night(monkeypatch, {"soak": part("true"), "verify": part("true", minutes=None)}, *options)
    assert options[1].partition("=")[0] in capfd.readouterr().err


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert lacks("ip", "nft", root=True) == "lacks root, ip, nft: apt-get install iproute2 nftables"
    assert lacks(memory_gb=1e6) == "lacks 1e+06 GB of free memory"

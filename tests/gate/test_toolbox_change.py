"""What differs between two toolboxes is named by its key, with both values."""

from __future__ import annotations

from ct_stream.gate.toolbox_change import differences


def test_each_value_that_differs_is_a_line() -> None:
    ours = {"smtp": {"per_day": 20000, "pause": 2.5}, "patterns": [{"name": "info"}, {"name": "jobs"}], "same": 1}
    theirs = {"smtp": {"per_day": 10000, "pause": 2.0}, "patterns": [{"name": "info"}], "same": 1.0}
    assert differences(ours, theirs) == [
        "patterns.2.name: jobs, not nothing",
        "smtp.pause: 2.5, not 2",
        "smtp.per_day: 20000, not 10000",
    ]
    assert differences(ours, ours) == []

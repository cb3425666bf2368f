"""CT_KAFKA_PREFIX goes before each topic and the group, in what is sent and in what is said."""

from __future__ import annotations

from typing import Any

import pytest

from ct_stream.settings import SettingsError, load_settings
from ct_stream.stream.app import make_app
from ct_stream.stream.rights import needed_rights
from ct_stream.stream.topology import Names, misfit, names_of, topic_plans

STAGING = Names(prefix="staging.")


def test_a_prefix_goes_before_every_topic_and_the_group() -> None:
    assert [plan.name for plan in topic_plans(1, min_insync=None, names=STAGING)] == [
        "staging.spine.created",
        "staging.ct.pass",
        "staging.ct.fail",
        "staging.ct.rejected",
        "staging.ct-stream-decided-changelog",
    ]
    assert STAGING.group == "staging.ct-stream"
    assert all(right.name.startswith("staging.") for right in needed_rights(STAGING))


def test_without_a_prefix_the_names_are_the_stable_ones() -> None:
    names = names_of(load_settings({}))
    assert (names.spine_created, names.ct_pass, names.ct_fail, names.ct_rejected, names.group) == (
        "spine.created",
        "ct.pass",
        "ct.fail",
        "ct.rejected",
        "ct-stream",
    )


def test_faust_names_its_changelog_as_we_do() -> None:
    """Its rule is <app id>-<table>-changelog."""
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9", "CT_KAFKA_PREFIX": "staging."}))
    assert app.conf.id == "staging.ct-stream"
    table: Any = app.Table("decided", partitions=1)
    assert table._changelog_topic_name() == STAGING.changelog


def test_an_error_names_the_topics_as_they_are_called_on_the_cluster() -> None:
    problem = misfit({"staging.spine.created": 12}, STAGING)
    assert problem is not None
    assert "staging.ct.pass" in problem.what


def test_a_text_gets_the_prefix_once() -> None:
    assert STAGING.named("read spine.created as the group ct-stream, then run `ct-stream topics`") == (
        "read staging.spine.created as the group staging.ct-stream, then run `ct-stream topics`"
    )
    said = STAGING.named("ct.pass, ct.fail and ct.rejected; ct-stream-decided-changelog")
    assert said == "staging.ct.pass, staging.ct.fail and staging.ct.rejected; staging.ct-stream-decided-changelog"
    assert STAGING.named(said) == said
    assert Names(prefix="").named(said) == said


@pytest.mark.parametrize("prefix", ["a b", "ä.", "x" * 101, "a/b", '"'])
def test_a_prefix_that_kafka_refuses_is_refused_here(prefix: str) -> None:
    with pytest.raises(SettingsError, match="CT_KAFKA_PREFIX"):
        load_settings({"CT_KAFKA_PREFIX": prefix})

"""Workers on a Ray cluster of one machine. Their class goes to them by value: it is nobody's to import."""

import os
import time

import pytest

from thalweg.core.errors import UserError
from thalweg.core.team import Team

pytestmark = pytest.mark.slow


def team_of(count: int, **settings) -> Team:
    common = {"cpus": 0.5, "gpus": 0.0, "address": None, "address_key": "parts.address", "remedy": "mend it"}
    return Team("the part", count=count, **common | settings)


def echo():
    class Echo:
        def __init__(self, greeting):
            self.greeting = greeting

        def open(self):
            pass

        def say(self, word):
            if word == "raise":
                raise KeyError("no such\nthing")
            if word == "refuse":
                raise UserError("a line of its own")
            if word == "die":
                os._exit(1)
            if word == "sleep":
                time.sleep(60)
            return f"{self.greeting} {word}"

    return Echo


def test_teams_share_a_cluster_that_ends_with_the_last_of_them():
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    assert not ray.is_initialized()
    one, two = team_of(2), team_of(1)
    one.open(echo(), "hello", timeout=100.0)
    two.open(echo(), "good day", timeout=100.0)
    assert one.answers(one.ask("say", [("you",), (one.share("all"),)]), 60.0) == ["hello you", "hello all"]
    assert one.answers(one.ask("say", [("you",)]), 60.0) == ["hello you"]  # fewer questions than workers
    assert one.answers([], 60.0) == []
    for word, line in (
        (
            "raise",
            "^the part: Ray worker 2 of 2 raised KeyError: 'no such.*thing'; mend it, and resume the run$",
        ),
        ("refuse", "^a line of its own$"),
        ("die", "^the part: Ray worker 2 of 2 died .*and resume the run$"),
    ):
        with pytest.raises(UserError, match=line):
            one.answers(one.ask("say", [("you",), (word,)]), 60.0)
    one.close()
    assert not one.is_open
    one.close()
    assert two.answers(two.ask("say", [("you",)]), 60.0) == ["good day you"]
    with pytest.raises(UserError, match=r"worker 1 of 1 gave no answer within 1 s; they need 0\.5 CPUs"):
        two.answers(two.ask("say", [("sleep",)]), 1.0)
    two.close()
    assert not ray.is_initialized()


def test_no_cluster_at_the_address_is_one_line():
    pytest.importorskip("ray")
    line = "^the part: no Ray cluster at 127.0.0.1:9 .*; start it with `ray start`, or mend parts.address$"
    with pytest.raises(UserError, match=line):
        team_of(1, address="127.0.0.1:9").open(echo(), "hello", timeout=10.0)

"""A judge behind an OpenAI-compatible server: letters, retries, and what goes wrong."""

from __future__ import annotations

import itertools

import pytest
from chat_server import letters, serving

from pad_fast.pipeline.benchmark.judge_server import ServerJudge


def ask(url, questions, **options):
    judge = ServerJudge([url], "big-judge", patience=options.pop("patience", 5.0), **options)
    return judge.ask(questions, lambda count: None)


def test_letters_are_read_alone_and_behind_a_space():
    bodies = []

    def reply(body):
        bodies.append(body)
        return 200, letters(0.75)

    with serving(reply) as url:
        (verdict,) = ask(f"{url}/v1", ["A or B?"], key="secret")
    assert verdict.first == pytest.approx(0.75)
    assert verdict.mass == pytest.approx(0.8)
    (body,) = bodies
    assert body == {
        "path": "/v1/chat/completions",
        "auth": "Bearer secret",
        "model": "big-judge",
        "messages": [{"role": "user", "content": "A or B?"}],
        "max_tokens": 1,
        "temperature": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_answers_keep_the_order_of_the_questions():
    def reply(body):
        return 200, letters(int(body["messages"][0]["content"]) / 100)

    with serving(reply) as one, serving(reply) as other:
        judge = ServerJudge([one, other], "judge")
        found = judge.ask([str(n) for n in range(1, 40)], lambda count: None)
    assert [verdict.first for verdict in found] == pytest.approx([n / 100 for n in range(1, 40)])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    calls = itertools.count()

    def reply(body):
        return (status, {"error": "busy"}) if next(calls) < 2 else (200, letters(0.6))

    with serving(reply) as url:
        (verdict,) = ask(url, ["?"])
    assert verdict.first == pytest.approx(0.6)
    assert next(calls) == 3


def test_garbage_is_asked_again_and_then_named():
    calls = itertools.count()

    def reply(body):
        return 200, b"<html>" if next(calls) < 1 else letters(0.6)

    with serving(reply) as url:
        assert ask(url, ["?"])[0].first == pytest.approx(0.6)
    with (
        serving(lambda body: (200, b"<html>")) as url,
        pytest.raises(ValueError, match="answers with no JSON"),
    ):
        ask(url, ["?"], patience=0.5)


def test_a_server_that_goes_away():
    with serving(lambda body: (200, letters(0.5))) as url:
        pass
    with pytest.raises(ConnectionError, match="does not answer") as caught:
        ask(url, ["?"], patience=0.5)
    assert "start the server and give the command again" in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, {"error": "no model big-judge"}), "404 .*no model big-judge"),
        ((401, {"error": "key"}), "401"),
        ((200, {"choices": [{"message": {"content": "A"}}]}), "gives no log-probabilities"),
        ((200, letters(0.5, forms=("<think>", "Well"))), "does not answer with A or B"),
    ],
)
def test_servers_that_cannot_judge(reply, message):
    with serving(lambda body: reply) as url, pytest.raises(ValueError, match=message):
        ask(url, ["?"])


def test_a_question_that_is_too_long():
    with serving(lambda body: (400, {"error": "maximum context length is 10"})) as url:
        assert ask(url, ["?"]) == [None]

"""The client of served models: order, throughput, and every fault of a server, each injected over a real socket."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.errors import PosttrainError
from posttrain.model.endpoint import Endpoint, ask_together
from posttrain.recipe.endpoint import EndpointSpec
from tests.scripted_server import Hangup, said, scripted, slowly

CHAT = "chat/completions"


def spec(url: str, **options: Any) -> EndpointSpec:
    return EndpointSpec.model_validate({"endpoint": url, "model": "teacher", "patience": 3, **options})


def bodies(count: int) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": str(number)}]} for number in range(count)]


def echo(path: str, body: dict[str, Any]) -> Any:
    return said(body["messages"][0]["content"])


def texts(replies: list[Any]) -> list[str]:
    return [reply.body["choices"][0]["message"]["content"] for reply in replies]


def faulty_at_first(fault: Callable[[], Any], times: int = 1) -> Callable[[str, dict[str, Any]], Any]:
    """Fails the first times it is asked, then echoes."""
    calls = itertools.count()
    return lambda path, body: fault() if next(calls) < times else echo(path, body)


def hang_up() -> Any:
    raise Hangup


def refused_port() -> str:
    """The base URL of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_replies_come_in_the_order_of_the_requests_with_as_many_in_flight_as_allowed() -> None:
    together = threading.Barrier(16)
    done: list[int] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        number = int(body["messages"][0]["content"])
        if number < 16:
            together.wait(timeout=20)  # broken if fewer are ever in flight
        return slowly(0.02 * (number % 3), echo(path, body))

    with scripted(answer) as it:
        replies = Endpoint(spec(it.url, concurrency=16)).ask_all(CHAT, bodies(64), done.append)
    assert texts(replies) == [str(number) for number in range(64)]
    assert sum(done) == 64 and it.most_in_flight == it.connections == 16
    assert {body["model"] for _, body, _ in it.asked} == {"teacher"} and it.asked[0][0] == "/v1/chat/completions"


def test_requests_are_read_only_as_far_as_there_is_room() -> None:
    read: list[int] = []

    def endless() -> Any:
        for number in itertools.count():
            read.append(number)
            yield bodies(1)[0]

    with scripted(echo) as it:
        first = list(itertools.islice(Endpoint(spec(it.url, concurrency=4)).ask(CHAT, endless()), 10))
    assert len(first) == 10 and len(read) <= 10 + 2 * 4


def test_the_next_request_is_on_its_way_before_a_reply_is_looked_at() -> None:
    with scripted(echo) as it:
        replies = Endpoint(spec(it.url, concurrency=1)).ask(CHAT, bodies(3))
        for number in range(1, 4):
            next(replies)
            until = time.monotonic() + 10
            while len(it.asked) < min(number + 1, 3):
                assert time.monotonic() < until, "the server waits for whoever reads the reply"
                time.sleep(0.01)


def test_what_was_answered_is_handed_out_before_requests_that_cannot_be_read() -> None:
    def broken() -> Any:
        yield from bodies(2)
        raise OSError("no space left")

    got = []
    with scripted(echo) as it, pytest.raises(OSError, match="no space left"):
        for reply in Endpoint(spec(it.url, concurrency=1)).ask(CHAT, broken()):
            got.append(reply.place)
    assert got == [0, 1]


def test_whoever_stops_listening_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    with scripted(lambda path, body: slowly(0.1, echo(path, body))) as it:
        replies = Endpoint(spec(it.url, concurrency=8)).ask(CHAT, bodies(100))
        next(replies)
        replies.close()  # type: ignore[attr-defined]
        time.sleep(0.3)  # the server may be late to read what is on its way already
        sent = len(it.asked)
        time.sleep(0.3)
    assert len(it.asked) == sent < 24
    assert not caplog.records  # no request that was given up is tried again


@pytest.mark.parametrize(
    "fault",
    [
        lambda: (503, {"error": {"message": "loading"}}),
        lambda: (429, {"error": {"message": "slow down"}}, {"retry-after": "1"}),
        lambda: (500, b"EngineDeadError"),
        lambda: (200, b'{"choices": [{"mess'),
        lambda: said("half an ans", reason="abort"),
        lambda: slowly(0.6, said("too late")),
        hang_up,
    ],
    ids=["busy", "limited", "failing", "cut off", "aborted", "slow", "hung up"],
)
def test_what_may_pass_is_tried_again(fault: Any) -> None:
    with scripted(faulty_at_first(fault, times=2)) as it:
        replies = Endpoint(spec(it.url, timeout=0.4, concurrency=4)).ask_all(CHAT, bodies(6))
    assert texts(replies) == [str(number) for number in range(6)]
    assert len(it.asked) == 8


@pytest.mark.parametrize(
    ("fault", "said_of_it"),
    [
        (lambda: (503, {"error": {"message": "still loading"}}), "answers HTTP 503: still loading (tried for 0.2 s)"),
        (lambda: slowly(0.4, said("late")), "did not answer within 0.2 s (tried for 0.2 s)"),
        (lambda: (401, {"error": "no"}), "refuses the key (HTTP 401)"),
        (lambda: (404, {"error": {"message": "The model `teacher` does not exist."}}), "HTTP 404: The model `teacher`"),
        (lambda: (200, b"<html>"), "answers something that is no JSON"),
        (lambda: (200, {"error": {"message": "no GPU"}}), "answers without a completion: no GPU"),
        (lambda: {"choices": []}, "answers without a completion"),
        (lambda: {"choices": ["4"]}, "answers without a completion"),
        (lambda: {"choices": [{"message": None, "finish_reason": "stop"}]}, "answers without a completion"),
        (lambda: {"choices": [{"message": {"content": [{"text": "4"}]}}]}, "answers a message that is no text"),
        (lambda: said("4", reasoning=["so"]), "answers a message that is no text"),
        (lambda: said("4", tool_calls=["add"]), "answers a message that is no text"),
    ],
    ids=[
        *("busy", "slow", "key", "model", "no API", "error under 200", "no choice", "a choice that is none", "nothing"),
        *("content in parts", "thinking in parts", "calls that are none"),
    ],
)
def test_what_does_not_pass_is_one_line_with_a_remedy(fault: Any, said_of_it: str) -> None:
    with scripted(lambda path, body: fault()) as it, pytest.raises(PosttrainError) as error:
        Endpoint(spec(it.url, timeout=0.2, patience=0.2), who="the teacher").ask_all(CHAT, bodies(3))
    (problem,) = error.value.problems
    assert f"the teacher at {it.url}" in problem.what and said_of_it in problem.what
    assert "\n" not in problem.what and problem.remedy


def test_a_server_that_is_not_there_is_named_and_one_that_comes_back_goes_on() -> None:
    url = refused_port()
    with pytest.raises(PosttrainError, match=r"not reachable.*\n.*start it"):
        Endpoint(spec(url, patience=0.1)).ask_all(CHAT, bodies(2))
    answered: list[str] = []
    asking = threading.Thread(
        target=lambda: answered.extend(texts(Endpoint(spec(url, patience=30)).ask_all(CHAT, bodies(3))))
    )
    asking.start()
    time.sleep(0.3)
    with scripted(echo, port=int(url.split(":")[2].split("/")[0])):
        asking.join(timeout=30)
    assert answered == ["0", "1", "2"]


def test_what_was_answered_is_handed_out_before_the_error() -> None:
    def answer(path: str, body: dict[str, Any]) -> Any:
        return (404, {"error": "gone"}) if body["messages"][0]["content"] == "5" else slowly(0.05, echo(path, body))

    got = []
    with scripted(answer) as it, pytest.raises(PosttrainError, match="HTTP 404"):
        for reply in Endpoint(spec(it.url, concurrency=4)).ask(CHAT, bodies(500)):
            got.append(reply.place)
    asked = {int(body["messages"][0]["content"]) for _, body, _ in it.asked}
    assert set(got) == asked - {5}  # whatever was sent is waited for
    assert len(asked) < 20  # nothing more is sent


def test_a_server_that_fails_for_good_ends_what_others_are_asked() -> None:
    failed = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> Any:
        failed.wait(timeout=20)
        return slowly(0.2, echo(path, body))  # the failure is read first

    def fail(path: str, body: dict[str, Any]) -> Any:
        failed.set()
        return 401, {"error": "no"}

    with scripted(answer) as sound, scripted(fail) as broken:
        models = [Endpoint(spec(it.url, concurrency=2)) for it in (sound, broken)]
        came: list[tuple[int, str]] = []
        with pytest.raises(PosttrainError, match=f"{broken.url} refuses the key"):
            for place, reply in ask_together([(model, CHAT, bodies(8)) for model in models]):
                came += [(place, text) for text in texts([reply])]
    assert sorted(came) == [(0, "0"), (0, "1")]  # those in flight
    assert len(sound.asked) == 2


def test_a_refused_request_is_one_among_others() -> None:
    def answer(path: str, body: dict[str, Any]) -> Any:
        too_long = (400, {"error": {"message": "maximum context length is 10 tokens"}})
        return too_long if body["messages"][0]["content"] == "1" else echo(path, body)

    with scripted(answer) as it:
        replies = Endpoint(spec(it.url)).ask_all(CHAT, bodies(3))
    assert [reply.refused for reply in replies] == ["", "maximum context length is 10 tokens", ""]
    assert replies[1].body == {} and len(it.asked) == 3


def test_check_names_what_is_wrong_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(echo) as it:
        Endpoint(spec(it.url)).check()
        it.models = ["qwen3-32b", "qwen3-8b"]
        with pytest.raises(PosttrainError, match=r"has no model `teacher`\n.*`qwen3-32b`, `qwen3-8b`"):
            Endpoint(spec(it.url)).check()
        with pytest.raises(PosttrainError, match=r"\$TEACHER_KEY, which is not set"):
            Endpoint(spec(it.url, api_key_env="TEACHER_KEY")).check()
    began = time.monotonic()
    with pytest.raises(PosttrainError, match="not reachable") as error:
        Endpoint(spec(refused_port(), patience=600)).check()
    assert time.monotonic() - began < 5 and "tried for" not in str(error.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret-1")
    with scripted(echo) as it:
        Endpoint(spec(it.url, api_key_env="TEACHER_KEY")).ask_all(CHAT, bodies(1))
    assert it.asked[0][2]["authorization"] == "Bearer secret-1"


def test_a_key_that_is_no_header_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret\n1")
    with scripted(echo) as it, pytest.raises(PosttrainError, match="the key or `endpoint`") as error:
        Endpoint(spec(it.url, api_key_env="TEACHER_KEY")).ask_all(CHAT, bodies(1))
    assert not it.asked and "secret" not in str(error.value)


@pytest.mark.parametrize("text", ["ä\u2028 \U0001f600", "half \\ud83d of one"])
def test_what_a_server_writes_is_read_as_json_reads_it(text: str) -> None:
    answer = f'{{"choices": [{{"message": {{"content": "{text}"}}, "finish_reason": "stop"}}]}}'.encode()
    with scripted(lambda path, body: (200, answer)) as it:
        (reply,) = Endpoint(spec(it.url, patience=0)).ask_all(CHAT, bodies(1))
    (choice,) = reply.body["choices"]
    content = choice["message"]["content"]
    assert content == text.replace("\\ud83d", "\ufffd")  # half a pair is no text: no file and no request takes it
    json.dumps(reply.body, ensure_ascii=False).encode()


@pytest.mark.parametrize("data", [[1], [None], ["x"], "x", None, [{"name": "teacher"}]])
def test_a_list_of_models_that_is_none_has_none(data: Any) -> None:
    with scripted(lambda path, body: {}) as it:
        it.models = []
        one = Endpoint(spec(it.url))
        one._once = lambda *asked: {"data": data}  # type: ignore[method-assign]
        assert one.names() == []


def test_the_servers_own_token_ids() -> None:
    with scripted(lambda path, body: {"tokens": [len(body["prompt"])], "count": 1}) as it:
        assert Endpoint(spec(it.url)).tokenize("seven") == [5]
    assert it.asked[0][0] == "/tokenize" and it.asked[0][1]["add_special_tokens"] is False
    with scripted(lambda path, body: {"count": 1}) as it, pytest.raises(PosttrainError, match="tells no token ids"):
        Endpoint(spec(it.url)).tokenize("seven")


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host/v1?key=1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match=r"address|base URL"):
        spec(address)


def test_an_address_may_leave_out_the_version_and_is_no_part_of_what_the_model_is() -> None:
    here, there = spec("http://host:8000"), spec("https://other:1/v1/", concurrency=3, timeout=1)
    assert here.endpoint == "http://host:8000/v1" and there.endpoint == "https://other:1/v1"
    assert here.identity() == there.identity() != spec("http://host:8000", tokenizer="./t").identity()

"""A reward behind a URL, against a small server in a thread."""

import base64
import datetime
import io
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rewards import Reward, score
from thalweg.rewards.http import HTTPReward

IMAGES = torch.stack([torch.full((3, 4, 6), value) for value in (0.0, 0.2, 0.4, 0.6, 1.0)])
PROMPTS = [Prompt(f"prompt {n}", {"n": n}) for n in range(5)]


def mean_of(png):
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (6, 4))
    return sum(image.tobytes()) / len(image.tobytes()) / 255


def brightness(question):
    return {"scores": [mean_of(png) for png in question["images"]]}


class Service:
    """Answers each request by the next of `answers`, the last one again and again; keeps the questions."""

    def __init__(self, *answers):
        self.answers, self.questions, self.headers = list(answers), [], []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.questions.append(question)
                service.headers.append(dict(self.headers))
                answer = service.answers[min(len(service.questions), len(service.answers)) - 1]
                answer = answer(question) if callable(answer) else answer
                status = answer if isinstance(answer, int) else 200
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve():
    started = []

    def start(*answers):
        started.append(Service(*answers))
        return started[-1]

    yield start
    for service in started:
        service.server.shutdown()
        service.server.server_close()


def test_images_and_prompts_go_out_in_batches_and_scores_come_back_in_order(serve):
    service = serve(brightness)
    rewards = [HTTPReward(url=service.url, batch=2, name="judge", headers={"X-Run": "7"})]
    assert_close(score(rewards, IMAGES, PROMPTS)["judge"], torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]))
    asked = [(q["prompts"], q["metadata"]) for q in service.questions]
    assert asked == [
        (["prompt 0", "prompt 1"], [{"n": 0}, {"n": 1}]),
        (["prompt 2", "prompt 3"], [{"n": 2}, {"n": 3}]),
        (["prompt 4"], [{"n": 4}]),
    ]
    assert all(h["Content-Type"] == "application/json" and h["X-Run"] == "7" for h in service.headers)


def test_metadata_that_json_does_not_know_goes_as_text(serve):
    service = serve({"scores": [1]})
    prompt = Prompt("a", {"day": datetime.date(2025, 5, 8)})
    HTTPReward(url=service.url).score(IMAGES[:1], [prompt])
    assert service.questions[0]["metadata"] == [{"day": "2025-05-08"}]


def test_null_is_an_image_that_cannot_be_judged(serve):
    got = HTTPReward(url=serve({"scores": [1, None, 0.5]}).url).score(IMAGES[:3], PROMPTS[:3])
    assert got.isnan().tolist() == [False, True, False] and got[2] == 0.5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"no json", 'is no JSON object with "scores"'),
        ([1, 2], 'is no JSON object with "scores"'),
        ({"score": [1, 2]}, 'is no JSON object with "scores"'),
        ({"scores": [1]}, "has 1 scores for 2 images"),
        ({"scores": 1}, "has int for 2 images"),
        ({"scores": [1, "good"]}, "has the score 'good', which is no number"),
        ({"scores": [1, True]}, "has the score True, which is no number"),
        (b'{"scores": [1, NaN]}', "has the score nan; answer null"),
        (b'{"scores": [1, -Infinity]}', "has the score -inf; answer null"),
    ],
)
def test_an_answer_that_does_not_fit_is_one_clear_line(answer, words, serve):
    service = serve(answer)
    with pytest.raises(UserError) as refused:
        HTTPReward(url=service.url, backoff=0).score(IMAGES[:2], PROMPTS[:2])
    assert words in str(refused.value) and service.url in str(refused.value)
    assert "\n" not in str(refused.value) and len(service.questions) == 1


@pytest.mark.parametrize("trouble", [500, 503, 429])
def test_a_service_in_trouble_is_asked_again_after_ever_longer_waits(trouble, serve, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    service = serve(trouble, trouble, trouble, brightness)
    got = HTTPReward(url=service.url, backoff=0.5).score(IMAGES[4:], PROMPTS[4:])
    assert got.tolist() == [1.0] and waits == [0.5, 1.0, 2.0]
    assert all(question == service.questions[0] for question in service.questions)


def test_a_question_that_is_refused_is_not_repeated(serve):
    service = serve(404)
    with pytest.raises(UserError, match="answered with status 404; start it or mend the url"):
        HTTPReward(url=service.url, backoff=0).score(IMAGES[:1], PROMPTS[:1])
    assert len(service.questions) == 1


def test_a_service_that_is_down_is_one_clear_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        UserError, match=r"reward 'http': the service at .* does not answer .*3 times"
    ) as refused:
        HTTPReward(url=url, retries=2, backoff=0).score(IMAGES[:1], PROMPTS[:1])
    assert "refused" in str(refused.value) and "\n" not in str(refused.value)


def test_a_service_that_takes_too_long_is_given_up(serve):
    service = serve(lambda question: time.sleep(0.3) or {"scores": [1]})
    with pytest.raises(UserError, match=r"does not answer .*timed out"):
        HTTPReward(url=service.url, timeout=0.05, retries=1, backoff=0).score(IMAGES[:1], PROMPTS[:1])


def test_a_url_is_needed():
    with pytest.raises(ValidationError, match="url"):
        TypeAdapter(Reward).validate_python("http")
    with pytest.raises(ValidationError, match="url"):
        HTTPReward(url="file:///etc/passwd")

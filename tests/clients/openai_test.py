"""The openai package, synchronous and asynchronous: chats, completions, embeddings and errors. What
a client shows is compared with what another way shows: streams with whole answers,
log-probabilities with `drover score`, pictures with `drover run`.

    python openai_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import asyncio
import base64
import contextlib
import json
import math
import pathlib
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
import zlib

import httpx
import openai
import server

QUESTION = [{"role": "user", "content": "What is 2+2?"}]


def openai_client(base, **options):
    return openai.OpenAI(**{"base_url": base, "api_key": "none", "max_retries": 0, **options})


def gather(stream, choices=1):
    """What the chunks of a chat say together: texts, reasons, log-probabilities; usage."""
    texts, finish, logprobs = [""] * choices, [None] * choices, [[] for _ in range(choices)]
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
            if choice.logprobs:
                logprobs[choice.index] += choice.logprobs.content
    return texts, finish, logprobs, usage


class SmolTest(server.ServedTest):
    start = staticmethod(server.smol)

    def client(self, **options):
        return openai_client(self.base, **options)


class ChatTest(SmolTest):
    def test_a_chat_answers(self):
        answer = self.client().chat.completions.create(
            model="smol", messages=QUESTION, temperature=0, max_tokens=20
        )
        self.assertIn("4", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.model, "smol")
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_a_stream_says_what_the_whole_answer_says(self):
        asked = dict(model="smol", messages=QUESTION, seed=7, temperature=0.8, max_tokens=30)
        whole = self.client().chat.completions.create(**asked)
        chunks = list(
            self.client().chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        texts, finish, _, usage = gather(chunks)
        self.assertEqual(texts, [whole.choices[0].message.content])
        self.assertEqual(finish, [whole.choices[0].finish_reason])
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        roles = [choice.delta.role for chunk in chunks for choice in chunk.choices]
        self.assertEqual([role for role in roles if role], ["assistant"])
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_many_streams_at_once_each_get_their_own(self):
        async def one(client, number):
            stream = await client.chat.completions.create(
                model="smol",
                messages=[{"role": "user", "content": f"Count from {number} upwards."}],
                temperature=0,
                max_tokens=24,
                stream=True,
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        async def all_of_them(together):
            async with openai.AsyncOpenAI(base_url=self.base, api_key="none") as client:
                if together:
                    return await asyncio.gather(*[one(client, i) for i in range(12)])
                return [await one(client, i) for i in range(12)]

        self.assertEqual(asyncio.run(all_of_them(True)), asyncio.run(all_of_them(False)))

    def test_several_samples_whole_and_as_a_stream(self):
        asked = dict(model="smol", messages=QUESTION, n=3, seed=1, temperature=1.2, max_tokens=12)
        whole = self.client().chat.completions.create(**asked)
        self.assertEqual([c.index for c in whole.choices], [0, 1, 2])
        texts = [c.message.content for c in whole.choices]
        self.assertGreater(len(set(texts)), 1)
        streamed, finish, _, _ = gather(
            self.client().chat.completions.create(**asked, stream=True), choices=3
        )
        self.assertEqual(streamed, texts)
        self.assertEqual(finish, [c.finish_reason for c in whole.choices])

    def test_log_probabilities_whole_and_as_a_stream(self):
        asked = dict(
            model="smol",
            messages=QUESTION,
            temperature=0,
            max_tokens=8,
            logprobs=True,
            top_logprobs=3,
        )
        choice = self.client().chat.completions.create(**asked).choices[0]
        content = choice.logprobs.content
        self.assertEqual("".join(t.token for t in content), choice.message.content)
        for token in content:
            self.assertEqual(bytes(token.bytes).decode(), token.token)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.logprob, token.top_logprobs[0].logprob)  # greedy
            self.assertLessEqual(sum(math.exp(t.logprob) for t in token.top_logprobs), 1.0001)
        _, _, logprobs, _ = gather(self.client().chat.completions.create(**asked, stream=True))
        self.assertEqual(logprobs, [content])

    def test_a_bias_bans_a_token(self):
        asked = dict(model="smol", messages=QUESTION, temperature=0, max_tokens=4)
        client = self.client()
        first = client.chat.completions.create(**asked, logprobs=True).choices[0]
        token = first.logprobs.content[0].token
        answer = client.post("../tokenize", body={"content": token}, cast_to=object)
        banned = client.chat.completions.create(
            **asked, logit_bias={str(answer["tokens"][0]): -100}
        )
        self.assertFalse(banned.choices[0].message.content.startswith(token))

    def test_the_address_may_end_with_its_version_or_not(self):
        for base in (self.server.address, self.server.address + "/", self.base, self.base + "/"):
            with self.subTest(base=base):
                answer = openai_client(base).chat.completions.create(
                    model="smol", messages=QUESTION, max_tokens=1
                )
                self.assertEqual(answer.usage.completion_tokens, 1)

    def test_roles_and_parts_are_read_as_clients_write_them(self):
        texts = {}
        for role in ("system", "developer"):
            for parts in (str, lambda text: [{"type": "text", "text": text}]):
                answer = self.client().chat.completions.create(
                    model="smol",
                    messages=[
                        {"role": role, "content": parts("You answer in one word.")},
                        {"role": "user", "content": parts("What is 2+2?")},
                        {"role": "assistant", "content": parts("Four.")},
                        {"role": "user", "content": parts("And 3+3?")},
                    ],
                    temperature=0,
                    max_tokens=8,
                )
                texts.setdefault(answer.usage.prompt_tokens, set()).add(
                    answer.choices[0].message.content
                )
        self.assertEqual([len(said) for said in texts.values()], [1], "all of them are the same")

    def test_the_model_is_listed(self):
        self.assertEqual([m.id for m in self.client().models.list()], ["smol"])
        self.assertEqual(self.client().models.retrieve("smol").id, "smol")


class CompletionsTest(SmolTest):
    def test_log_probabilities_of_a_prompt_are_those_of_score(self):
        text = "The quick brown fox jumps over the lazy dog."
        answer = self.client().completions.create(
            model="smol", prompt=text, max_tokens=0, echo=True, logprobs=1
        )
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), text)
        self.assertIsNone(logprobs.token_logprobs[0])
        # The same numbers added up, so only the rounding of nine sums may differ.
        scored = server.score(server.SMOLLM2, text)
        self.assertAlmostEqual(-sum(logprobs.token_logprobs[1:]), scored["nll"], delta=1e-12)
        self.assertEqual(len(logprobs.tokens) - 1, scored["tokens"])

    def test_several_prompts_are_several_choices(self):
        prompts = ["Once upon a time", "The capital of France is"]
        asked = dict(model="smol", temperature=0, max_tokens=6)
        together = self.client().completions.create(prompt=prompts, **asked)
        alone = [self.client().completions.create(prompt=p, **asked) for p in prompts]
        self.assertEqual([c.text for c in together.choices], [a.choices[0].text for a in alone])


class EmbeddingsTest(SmolTest):
    def test_floats_and_base64_are_the_same_numbers(self):
        client = self.client()
        texts = ["a cat sleeps", "a kitten rests", "the stock market fell"]
        binary = client.embeddings.create(model="smol", input=texts)  # the package asks for base64
        floats = client.embeddings.create(model="smol", input=texts, encoding_format="float")
        self.assertEqual([d.index for d in binary.data], [0, 1, 2])
        for a, b in zip(binary.data, floats.data, strict=True):
            single = struct.Struct(f"<{len(a.embedding)}f").pack
            self.assertEqual(single(*a.embedding), single(*b.embedding))
            self.assertAlmostEqual(sum(x * x for x in b.embedding), 1, places=4)


class SmolErrorsTest(SmolTest):
    def test_errors_are_the_ones_that_the_client_knows(self):
        client = self.client()
        with self.assertRaises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-4", messages=QUESTION)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="smol", messages=[{"role": "user", "content": "word " * 9000}]
            )
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertRegex(caught.exception.message, r"8192.*90\d\d|90\d\d.*8192")
        with self.assertRaises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="smol", messages=QUESTION, temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        self.assertEqual(caught.exception.type, "invalid_request_error")


# Answers of the tiny model that do not end by themselves while a test looks.
ENDLESS = dict(
    model="tiny",
    messages=QUESTION,
    stream=True,
    max_tokens=100_000,
    extra_body={"ignore_eos": True},
)


def requests_in_hand(address):
    with urllib.request.urlopen(address + "/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("drover_requests_in_hand "):
                return float(line.split()[1])
    raise AssertionError("the metrics do not say how many requests are in hand")


def wait_until_idle(address):
    """Leaving is seen within a step of the engine; the patience is for a busy machine."""
    end = time.monotonic() + 60
    while requests_in_hand(address) > 0:
        if time.monotonic() > end:
            raise AssertionError("a request that nobody waits for is still in hand")
        time.sleep(0.01)


class LeavingTest(server.ServedTest):
    start = staticmethod(server.tiny)

    def test_a_stream_that_is_closed_frees_the_engine(self):
        with openai_client(self.base).chat.completions.create(**ENDLESS) as stream:
            next(iter(stream))
            self.assertEqual(requests_in_hand(self.server.address), 1)
        wait_until_idle(self.server.address)

    def test_a_task_that_is_cancelled_frees_the_engine(self):
        async def leave():
            client = openai.AsyncOpenAI(base_url=self.base, api_key="none", max_retries=0)
            async with client:
                begun = asyncio.Event()

                async def read():
                    async with await client.chat.completions.create(**ENDLESS) as stream:
                        async for _ in stream:
                            begun.set()

                task = asyncio.create_task(read())
                await begun.wait()
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

        asyncio.run(leave())
        wait_until_idle(self.server.address)

    def test_the_end_of_the_server_is_an_error_in_the_stream(self):
        ending = server.tiny("--drain-seconds", 0)
        codes = []
        end = threading.Thread(target=lambda: codes.append(ending.stop()))
        try:
            stream = openai_client(ending.base).chat.completions.create(**ENDLESS)
            next(iter(stream))
        finally:
            end.start()
        with self.assertRaises(openai.APIError) as caught:
            for _ in stream:
                pass
        self.assertIn("about to end", caught.exception.message)
        end.join()
        self.assertEqual(codes, [0])


class CrowdTest(server.ServedTest):
    """A server that takes one request at a time."""

    @staticmethod
    def start():
        return server.tiny("--max-queue", 1)

    def test_one_too_many_is_a_rate_limit_error(self):
        with openai_client(self.base).chat.completions.create(**ENDLESS) as stream:
            next(iter(stream))
            with self.assertRaises(openai.RateLimitError) as caught:
                openai_client(self.base).chat.completions.create(
                    model="tiny", messages=QUESTION, max_tokens=1
                )
            self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
        wait_until_idle(self.server.address)

    def test_a_client_that_comes_again_is_answered(self):
        statuses = []
        with openai_client(self.base).chat.completions.create(**ENDLESS) as stream:
            next(iter(stream))

            def make_room(response):
                statuses.append(response.status_code)
                stream.close()
                wait_until_idle(self.server.address)

            with httpx.Client(event_hooks={"response": [make_room]}) as http:
                answer = openai_client(self.base, max_retries=2, http_client=http)
                answer = answer.chat.completions.create(
                    model="tiny", messages=QUESTION, max_tokens=3
                )
        self.assertEqual(statuses, [429, 200])
        self.assertEqual(answer.usage.completion_tokens, 3)


class KeysTest(unittest.TestCase):
    def test_a_wrong_key_is_an_authentication_error(self):
        with tempfile.NamedTemporaryFile("w", prefix="drover-keys-") as keys:
            keys.write("anna right\n")
            keys.flush()
            served = server.tiny("--api-key-file", keys.name)
            try:
                with self.assertRaises(openai.AuthenticationError):
                    openai_client(served.base, api_key="wrong").models.list()
                models = openai_client(served.base, api_key="right").models.list()
                self.assertEqual([m.id for m in models], ["tiny"])
            finally:
                self.assertEqual(served.stop(), 0)
        self.assertNotIn("right", "".join(served.lines), "a log never shows a key")


def png(width, height, colour):
    """A PNG file in which colour(x, y) says the red, green and blue of each pixel."""
    rows = b"".join(
        b"\0" + b"".join(bytes(colour(x, y)) for x in range(width)) for y in range(height)
    )

    def chunk(kind, data):
        length, checksum = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + checksum

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


RED = png(20, 30, lambda x, y: (200, 0, 0))
STRIPES = png(150, 60, lambda x, y: (x, 4 * y, 99))


def picture_part(data):
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


class PicturesTest(server.ServedTest):
    """A Llama 4 with eyes: what it says is nonsense, but its own for every picture."""

    start = staticmethod(server.tiny)

    def ask(self, *pictures):
        content = [picture_part(data) for data in pictures]
        content.append({"type": "text", "text": "what is that"})
        return openai_client(self.base).chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=8,
        )

    def test_a_chat_about_pictures_says_what_run_says(self):
        for pictures in ([RED], [STRIPES], [RED, STRIPES]):
            with self.subTest(pictures=len(pictures)), tempfile.TemporaryDirectory() as folder:
                answer = self.ask(*pictures)
                flags = []
                for number, data in enumerate(pictures):
                    path = pathlib.Path(folder) / f"{number}.png"
                    path.write_bytes(data)
                    flags += ["--image", str(path)]
                run = [server.drover, "run", str(server.tiny_model()), "what is that", *flags]
                run += ["--temp", "0", "-n", "8", "--json", *server.ONE_THREAD]
                done = subprocess.run(run, check=True, capture_output=True, env=server.CLEAN)
                said = json.loads(done.stdout)
                self.assertEqual(answer.choices[0].message.content, said["text"])
                self.assertEqual(answer.usage.prompt_tokens, said["prompt_tokens"])

    def test_what_is_seen_matters(self):
        said = {self.ask(*seen).choices[0].message.content for seen in ([], [RED], [STRIPES])}
        self.assertEqual(len(said), 3)

    def test_no_picture_is_a_bad_request(self):
        with self.assertRaises(openai.BadRequestError):
            self.ask(b"this is text")


if __name__ == "__main__":
    server.main()

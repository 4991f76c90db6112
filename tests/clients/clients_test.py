"""`drover serve` as the clients see it that people use: openai, LangChain and LlamaIndex, against
SmolLM2, which really answers.

    python clients_test.py DROVER [unittest arguments]

What a client shows is compared with what another way shows: streams with whole answers,
log-probabilities with `drover score`.
"""

import asyncio
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import unittest

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

SMOLLM2 = pathlib.Path(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
drover = ""


class Server:
    """A server in a process of its own, on a port of its own choosing."""

    def __init__(self, *flags):
        command = [drover, "serve", str(SMOLLM2), "--port", "0", "--alias", "smol", *flags]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DROVER")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on (\S+)", line):
                self.address = found[1]
            if line == "ready\n":
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(self.lines))
        self.rest = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self.rest.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        self.rest.join()
        self.process.stderr.close()
        return code


class ClientsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.base = cls.server.address + "/v1"

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def client(self, **options):
        return openai.OpenAI(base_url=self.base, api_key="none", max_retries=0, **options)


class OpenAITest(ClientsTest):
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
        text, finish, usage, roles = "", None, None, []
        for chunk in self.client().chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                roles += [choice.delta.role] if choice.delta.role else []
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(finish, whole.choices[0].finish_reason)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(roles, ["assistant"])

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

    def test_several_samples(self):
        answer = self.client().chat.completions.create(
            model="smol", messages=QUESTION, n=3, seed=1, temperature=1.2, max_tokens=12
        )
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in answer.choices}), 1)

    def test_log_probabilities_of_a_chat(self):
        answer = self.client().chat.completions.create(
            model="smol",
            messages=QUESTION,
            temperature=0,
            max_tokens=8,
            logprobs=True,
            top_logprobs=3,
        )
        choice = answer.choices[0]
        content = choice.logprobs.content
        self.assertEqual("".join(t.token for t in content), choice.message.content)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.logprob, token.top_logprobs[0].logprob)  # greedy
            self.assertLessEqual(sum(math.exp(t.logprob) for t in token.top_logprobs), 1.0001)

    def test_log_probabilities_of_a_prompt_are_those_of_score(self):
        text = "The quick brown fox jumps over the lazy dog."
        answer = self.client().completions.create(
            model="smol", prompt=text, max_tokens=0, echo=True, logprobs=1
        )
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), text)
        self.assertIsNone(logprobs.token_logprobs[0])
        scored = subprocess.run(
            [drover, "score", str(SMOLLM2), "--text", "-", "--json"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        expected = json.loads(scored.stdout)
        mean = -sum(logprobs.token_logprobs[1:]) / (len(logprobs.tokens) - 1)
        self.assertAlmostEqual(math.exp(mean), expected["perplexity"], delta=1e-3 * math.exp(mean))

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

    def test_embeddings_in_floats_and_in_base64(self):
        client = self.client()
        texts = ["a cat sleeps", "a kitten rests", "the stock market fell"]
        binary = client.embeddings.create(model="smol", input=texts)
        floats = client.embeddings.create(model="smol", input=texts, encoding_format="float")
        self.assertEqual([d.index for d in binary.data], [0, 1, 2])
        for a, b in zip(binary.data, floats.data):
            for x, y in zip(a.embedding, b.embedding, strict=True):
                self.assertAlmostEqual(x, y, places=6)
            self.assertAlmostEqual(sum(x * x for x in b.embedding), 1, places=4)

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

    def test_the_model_is_listed(self):
        self.assertEqual([m.id for m in self.client().models.list()], ["smol"])
        self.assertEqual(self.client().models.retrieve("smol").id, "smol")

    def test_a_client_that_stops_reading_frees_the_engine(self):
        stream = self.client().chat.completions.create(
            model="smol", messages=QUESTION, stream=True, max_tokens=4000, logit_bias={"2": -100}
        )
        next(iter(stream))
        stream.close()
        again = self.client(timeout=30).chat.completions.create(
            model="smol", messages=QUESTION, temperature=0, max_tokens=20
        )
        self.assertIn("4", again.choices[0].message.content)


class LangChainTest(ClientsTest):
    def model(self, **options):
        return ChatOpenAI(
            model="smol", base_url=self.base, api_key="none", temperature=0, max_retries=0, **options
        )

    def test_a_chat_and_its_stream(self):
        model = self.model(max_tokens=24)
        whole = model.invoke("What is 2+2?")
        self.assertIn("4", whole.content)
        self.assertGreater(whole.usage_metadata["output_tokens"], 0)
        pieces = [p.content for p in model.stream("What is 2+2?")]
        self.assertEqual("".join(pieces), whole.content)
        self.assertGreater(len(pieces), 3)

    def test_a_batch(self):
        answers = self.model(max_tokens=8).batch(["Say yes.", "Say no.", "Say maybe."])
        self.assertEqual(len(answers), 3)

    def test_embeddings_find_what_is_near(self):
        embeddings = OpenAIEmbeddings(
            model="smol", base_url=self.base, api_key="none", check_embedding_ctx_length=False
        )
        a, b = embeddings.embed_documents(["the cat sleeps on the sofa", "shares fell in Tokyo"])
        query = embeddings.embed_query("a cat is sleeping on a sofa")
        dot = lambda x, y: sum(i * j for i, j in zip(x, y))
        self.assertGreater(dot(query, a), dot(query, b))


class LlamaIndexTest(ClientsTest):
    def test_completions_and_chats(self):
        for is_chat in (False, True):
            model = OpenAILike(
                model="smol",
                api_base=self.base,
                api_key="none",
                is_chat_model=is_chat,
                max_tokens=16,
                temperature=0,
                max_retries=0,
            )
            whole = model.complete("Once upon a time")
            self.assertGreater(len(whole.text), 10)
            pieces = list(model.stream_complete("Once upon a time"))
            self.assertEqual(pieces[-1].text, whole.text)
        answer = model.chat([ChatMessage(role="user", content="What is 2+2?")])
        self.assertIn("4", answer.message.content)

    def test_embeddings(self):
        model = OpenAILikeEmbedding(model_name="smol", api_base=self.base, api_key="none")
        self.assertEqual(len(model.get_text_embedding("a text")), 576)
        self.assertEqual(len(model.get_text_embedding_batch(["a", "b", "c"])), 3)


class KeysTest(unittest.TestCase):
    def test_a_wrong_key_is_an_authentication_error(self):
        path = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"drover-keys-{os.getpid()}"
        path.write_text("anna right\n")
        server = Server("--api-key-file", str(path))
        try:
            ask = lambda key: openai.OpenAI(
                base_url=server.address + "/v1", api_key=key, max_retries=0
            ).models.list()
            with self.assertRaises(openai.AuthenticationError):
                ask("wrong")
            self.assertEqual([m.id for m in ask("right")], ["smol"])
        finally:
            self.assertEqual(server.stop(), 0)
            path.unlink()
        self.assertNotIn("right", "".join(server.lines), "a log never shows a key")


if __name__ == "__main__":
    drover = sys.argv.pop(1)
    if not SMOLLM2.exists():
        print("skipped: SmolLM2 is not there; script/fetch-smollm2 brings it")
        sys.exit(77)
    unittest.main()

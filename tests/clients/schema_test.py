"""The server against its own description: every path, every kind of answer, whole and as a stream;
and that the check itself sees what is not as described."""

import asyncio
import copy
import json
import unittest

import httpx
import schema
import server

CHAT = {"messages": [{"role": "user", "content": "the sea"}], "max_tokens": 4, "seed": 1}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TURN = {"messages": CHAT["messages"], "max_tokens": 4}
DOT = "data:image/png;base64," + (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNITEoGAAJOASfAYZ4ZAAAAAElFTkSuQmCC"
)


class DescribedTest(server.ServedTest):
    start = server.tiny

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.description = schema.Description.of(cls.server.address)
        cls.client = httpx.Client(base_url=cls.server.address)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        super().tearDownClass()

    def ask(self, method, path, body=None, status=200, **more):
        """Asks, and checks answer and request; the answer."""
        answer = self.client.request(method, path, json=body, **more)
        self.assertEqual(answer.status_code, status, answer.text)
        path = path.partition("?")[0]
        self.description.check(method, path, status, answer.headers, answer.content)
        if status == 200 and body is not None:
            self.description.check_request(method, path, json.dumps(body))
        return answer

    def test_every_path_answers_as_described(self):
        asked = set()

        def ask(path, body=None, name=None):
            asked.add(name or path)
            return self.ask("GET" if body is None else "POST", path, body)

        for path in ("/health", "/version", "/metrics", "/models", "/openapi.json", "/tokenizer_info"):
            ask(path)
            self.ask("HEAD", path)
        ask("/models/tiny", name="/models/{model}")
        ask("/chat/completions", CHAT)
        ask("/completions", {"prompt": ["the", "sea"], "max_tokens": 2})
        ask("/embeddings", {"input": ["the", "sea"]})
        tokens = ask("/tokenize", {"prompt": "the sea", "return_token_strs": True}).json()["tokens"]
        ask("/detokenize", {"tokens": tokens})
        ask("/responses", {"input": "the sea", "max_output_tokens": 4})
        ask("/messages", TURN)
        ask("/messages/count_tokens", {"messages": CHAT["messages"]})
        self.assertEqual(asked, set(self.description.document["paths"]))

    def test_every_form_of_an_answer_is_described(self):
        picture = {"type": "image_url", "image_url": {"url": DOT}}
        for more in (
            {"n": 2, "logprobs": True, "top_logprobs": 3},
            {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
            {"messages": [{"role": "user", "content": [picture]}]},
            {"stop": ["a", "b"], "response_format": {"type": "text"}, "user": "somebody"},
            {"logit_bias": {"7": 1.5}, "stop_token_ids": [1], "temperature": None},
        ):
            for stream in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
                with self.subTest(more=more, stream=stream):
                    self.ask("POST", "/v1/chat/completions/", {**CHAT, **more, **stream})
        for more in ({"echo": True, "logprobs": 2}, {"prompt": [5, 6, 7], "n": 2}):
            for stream in ({}, {"stream": True}):
                with self.subTest(more=more, stream=stream):
                    body = {"prompt": "the sea", "max_tokens": 3, **more, **stream}
                    self.ask("POST", "/v1/completions", body)
        result = {"type": "function_call_output", "call_id": "call_1", "output": "nothing"}
        call = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
        tool = {"type": "function", **TOOL["function"]}
        include = ["message.output_text.logprobs"]
        for more in (
            {"input": [{"role": "user", "content": "a"}, call, result], "tools": [tool]},
            {"input": "a", "include": include, "top_logprobs": 2, "metadata": {"a": "b"}},
        ):
            for stream in ({}, {"stream": True}):
                with self.subTest(more=more, stream=stream):
                    self.ask("POST", "/v1/responses", {"max_output_tokens": 4, **more, **stream})
        use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "nothing"}
        source = {"type": "base64", "media_type": "image/png", "data": DOT.partition(",")[2]}
        seen = [{"type": "text", "text": "a"}, {"type": "image", "source": source}]
        turns = (("user", seen), ("assistant", [use]), ("user", [result]))
        for more in (
            {"messages": [{"role": role, "content": content} for role, content in turns]},
            {"tools": [{"name": "look", "input_schema": {}}], "tool_choice": {"type": "any"}},
            {"system": "a", "stop_sequences": ["a", "e"], "thinking": {"type": "disabled"}},
        ):
            for stream in ({}, {"stream": True}):
                with self.subTest(more=more, stream=stream):
                    self.ask("POST", "/v1/messages", {**TURN, **more, **stream})
        self.ask("POST", "/v1/embeddings", {"input": [5, 6], "encoding_format": "base64"})
        self.ask("POST", "/tokenize", {"messages": CHAT["messages"], "tools": [TOOL]})

    def test_refusals_are_described(self):
        post = "POST", "/v1/chat/completions"
        self.ask(*post, {**CHAT, "temperature": -1}, status=400)
        self.ask(*post, {**CHAT, "audio": {"voice": "low"}}, status=400)
        self.ask(*post, {**CHAT, "model": "another"}, status=404)
        self.ask("GET", "/v1/models/another", status=404)
        self.ask("POST", "/v1/responses", {"input": "a", "background": True}, status=400)
        self.ask("POST", "/v1/messages", {**TURN, "thinking": {"type": "enabled"}}, status=400)
        self.ask("POST", "/v1/messages", {**TURN, "model": "another"}, status=404)
        self.ask("GET", "/v1/messages", status=405)
        self.ask("GET", "/nothing", status=404)
        self.ask("DELETE", "/v1/models", status=405)
        self.ask(*post, status=415, headers={"Content-Type": "text/plain"}, content=b"{}")
        self.ask("GET", "/health", status=403, headers={"Host": "elsewhere.example"})
        self.ask("GET", "/models?" + "a" * 9000, status=414)
        self.ask("GET", "/health", status=431, headers={"X-Long": "a" * 20000})

    def test_what_is_not_as_described_is_seen(self):
        def refused(change, path="/v1/chat/completions", body=CHAT):
            answer = self.ask("POST", path, body)
            value = answer.json()
            change(value)
            with self.assertRaises(schema.Violation):
                self.description.check("POST", path, 200, answer.headers, json.dumps(value).encode())

        refused(lambda value: value.update(extra=1))
        refused(lambda value: value.pop("usage"))
        refused(lambda value: value["choices"][0].update(finish_reason="over"))
        refused(lambda value: value["choices"][0]["message"].update(content=7))
        refused(lambda value: value["usage"].update(prompt_tokens=-1))
        refused(lambda value: value["data"][0].pop("index"), "/v1/embeddings", {"input": "the"})

        answer = self.ask("POST", "/v1/completions", {"prompt": "the", "max_tokens": 2, "stream": True})
        check = lambda **more: self.description.check(
            **{
                "method": "POST",
                "path": "/v1/completions",
                "status": 200,
                "headers": answer.headers,
                "body": answer.content,
                **more,
            }
        )
        check()
        without_id = httpx.Headers(answer.headers)
        del without_id["X-Request-Id"]
        for wrong in (
            {"body": answer.content.replace(b'"text"', b'"texts"', 1)},
            {"body": answer.content.replace(b"[DONE]", b"[OVER]")},
            {"body": b""},
            {"status": 299},
            {"path": "/v1/nothing"},
            {"headers": without_id},
            {"headers": {**answer.headers, "content-type": "text/html"}},
        ):
            with self.subTest(wrong=wrong), self.assertRaises(schema.Violation):
                check(**wrong)
        with self.assertRaises(schema.Violation):
            self.description.check_request("POST", "/v1/completions", '{"prompt": 7}')

    def test_every_client_of_httpx_is_heard(self):
        heard = schema.the_watch()  # server.main() has it watch every server
        before = heard.exchanges
        self.client.get("/health")
        body = {"prompt": "the", "max_tokens": 2, "stream": True}
        with self.client.stream("POST", "/v1/completions", json=body) as stream:
            next(line for line in stream.iter_lines() if line.startswith("data:"))  # and leaves

        async def ask():
            async with httpx.AsyncClient(base_url=self.server.address) as client:
                await client.get("/health")

        asyncio.run(ask())
        self.assertEqual(heard.exchanges, before + 3)
        self.assertEqual(heard.violations, [])

    def test_a_watch_hears_streams_and_whole_answers_and_reports_once(self):
        watch = schema.Watch()
        damaged = copy.deepcopy(self.description.document)
        damaged["components"]["schemas"]["CompletionChunk"]["required"].append("nothing")
        watch.descriptions["http://x"] = schema.Description(damaged)
        chunk = b'data: {"id":"cmpl-%s"}\n\n' % (b"0" * 24)
        request = httpx.Request("POST", "http://x/v1/completions", content=b'{"prompt": "a"}')
        headers = {"Content-Type": "text/event-stream", "X-Request-Id": "a"}
        answer = httpx.Response(200, headers=headers)
        watch.hear(request, answer, chunk, whole=True)
        watch.hear(request, answer, chunk + b"data: {", whole=False)
        watch.hear(request, answer, b"data: {", whole=False)  # nothing to judge yet
        self.assertEqual((watch.exchanges, len(watch.violations)), (2, 2))
        with self.assertRaisesRegex(AssertionError, "/v1/completions"):
            watch.report()
        watch.report()


if __name__ == "__main__":
    server.main()

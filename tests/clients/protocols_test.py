"""OpenAI's responses through the openai package, and Anthropic's messages through the anthropic
package. Every object and every event that comes is read by the packages' own types, strictly: a
field that is missing, has another type or is not known there fails the test.

    python protocols_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import base64
import json
import unittest

import anthropic
import anthropic.types
import httpx
import openai
import openai.types.responses
import pydantic
import server
from anthropic.types.shared import ErrorResponse
from langchain_openai import ChatOpenAI
from openai_test import png

QUESTION = "What is 2+2?"
RED = png(40, 24, lambda x, y: (255, 0, 0))
CHESS = png(40, 24, lambda x, y: (255 * ((x // 8 + y // 8) % 2),) * 3)

# Fields that the API sends and the packages do not name: of a response, and of a piece's
# log-probabilities, which has what the whole one's have.
UNNAMED = {"Response": {"store"}, "Logprob": {"bytes"}, "LogprobTopLogprob": {"bytes"}}


def unnamed_fields(value):
    """Of all models in it, the fields that their types do not know."""
    if isinstance(value, pydantic.BaseModel):
        name = type(value).__name__
        for field in set(value.model_extra or {}) - UNNAMED.get(name, set()):
            yield f"{name}.{field}"
        for field in value.model_fields_set:
            yield from unnamed_fields(getattr(value, field))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from unnamed_fields(one)
    elif isinstance(value, dict):
        yield from unnamed_fields(list(value.values()))


def read(kind, data):
    """The data as this type, or what is wrong with them."""
    value = pydantic.TypeAdapter(kind).validate_python(data, strict=True)
    unknown = list(unnamed_fields(value))
    if unknown:
        raise AssertionError(f"{kind}: {unknown} in {json.dumps(data)}")
    return value


def events_of(text):
    """The events of a stream: name and data."""
    for event in text.split("\n\n"):
        lines = [line for line in event.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


class ProtocolTest(server.ServedTest):
    def openai(self, **options):
        return openai.OpenAI(base_url=self.base, api_key="none", max_retries=0, **options)

    def anthropic(self, **options):
        return anthropic.Anthropic(
            base_url=self.server.address, api_key="none", max_retries=0, **options
        )

    def post(self, path, body, status=200):
        answer = httpx.post(self.base + path, json=body, timeout=60)
        self.assertEqual(answer.status_code, status, answer.text)
        return answer

    def responses(self, body):
        """A response, whole and as a stream, which must be the same, strictly read."""
        whole = read(openai.types.responses.Response, self.post("/responses", body).json())
        events = []
        text = self.post("/responses", {**body, "stream": True}).text
        for number, (name, data) in enumerate(events_of(text)):
            self.assertEqual(name, data["type"])
            self.assertEqual(data["sequence_number"], number)
            events.append(read(openai.types.responses.ResponseStreamEvent, data))
        last = events[-1].response
        self.assertEqual(
            [item.model_dump(exclude={"id", "call_id"}) for item in last.output],
            [item.model_dump(exclude={"id", "call_id"}) for item in whole.output],
        )
        self.assertEqual((last.status, last.usage.output_tokens), (whole.status, whole.usage.output_tokens))
        return whole, events

    def messages(self, body):
        """The same of a message."""
        whole = read(anthropic.types.Message, self.post("/messages", body).json())
        events = []
        text = self.post("/messages", {**body, "stream": True}).text
        for name, data in events_of(text):
            self.assertEqual(name, data["type"])
            if name != "ping":
                events.append(read(anthropic.types.RawMessageStreamEvent, data))
        last = next(e for e in events if e.type == "message_delta")
        self.assertEqual(last.delta.stop_reason, whole.stop_reason)
        self.assertEqual(last.delta.stop_sequence, whole.stop_sequence)
        self.assertEqual(last.usage.output_tokens, whole.usage.output_tokens)
        texts = "".join(
            e.delta.text for e in events
            if e.type == "content_block_delta" and e.delta.type == "text_delta"
        )
        self.assertEqual(texts, "".join(b.text for b in whole.content if b.type == "text"))
        return whole, events


class SmolTest(ProtocolTest):
    start = staticmethod(server.smol)

    def followed_up(self, answer):
        """What a chat says after this answer."""
        return self.openai().chat.completions.create(
            model="smol", temperature=0, max_tokens=20,
            messages=[{"role": "user", "content": QUESTION},
                      {"role": "assistant", "content": answer},
                      {"role": "user", "content": "And 3+3?"}],
        ).choices[0].message.content


class ResponsesTest(SmolTest):
    def test_a_response_answers_and_can_be_followed_up(self):
        client = self.openai()
        asked = dict(model="smol", temperature=0, max_output_tokens=20)
        answer = client.responses.create(input=QUESTION, metadata={"a": "b"}, **asked)
        self.assertIn("4", answer.output_text)
        self.assertEqual(answer.status, "completed")
        self.assertEqual(answer.metadata, {"a": "b"})
        self.assertEqual(
            answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens
        )
        # What came goes back as it came.
        again = client.responses.create(
            input=[{"role": "user", "content": QUESTION}, *answer.output,
                   {"role": "user", "content": "And 3+3?"}],
            **asked,
        )
        self.assertEqual(again.output_text, self.followed_up(answer.output_text))
        self.assertGreater(again.usage.input_tokens, answer.usage.input_tokens)
        self.assertGreater(again.usage.input_tokens_details.cached_tokens, 0)

    def test_it_says_what_a_chat_says(self):
        chat = self.openai().chat.completions.create(
            model="smol", temperature=0.8, seed=3, max_tokens=30,
            messages=[{"role": "user", "content": QUESTION}],
        )
        response = self.openai().responses.create(
            model="smol", temperature=0.8, input=QUESTION, max_output_tokens=30,
            extra_body={"seed": 3},
        )
        self.assertEqual(response.output_text, chat.choices[0].message.content)

    def test_the_packages_own_stream_puts_it_together(self):
        asked = dict(model="smol", input=QUESTION, temperature=0, max_output_tokens=20)
        whole = self.openai().responses.create(**asked)
        with self.openai().responses.stream(**asked) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            final = stream.get_final_response()
        self.assertEqual(text, whole.output_text)
        self.assertEqual(final.output_text, whole.output_text)

    def test_all_of_it_has_the_packages_types(self):
        whole, events = self.responses(
            dict(input=QUESTION, temperature=0, max_output_tokens=20,
                 include=["message.output_text.logprobs"], top_logprobs=2, store=True)
        )
        part = whole.output[0].content[0]
        self.assertEqual("".join(one.token for one in part.logprobs), part.text)
        self.assertEqual({len(one.top_logprobs) for one in part.logprobs}, {2})
        deltas = [e for e in events if e.type == "response.output_text.delta"]
        self.assertEqual(
            [one.logprob for e in deltas for one in e.logprobs],
            [one.logprob for one in part.logprobs],
        )
        self.assertEqual(events[0].type, "response.created")
        self.assertEqual(events[-1].type, "response.completed")

    def test_what_is_cut_is_incomplete(self):
        whole, events = self.responses(
            dict(input=QUESTION, instructions="Be brief.", temperature=0, max_output_tokens=2)
        )
        self.assertEqual(whole.status, "incomplete")
        self.assertEqual(whole.incomplete_details.reason, "max_output_tokens")
        self.assertEqual(events[-1].type, "response.incomplete")

    def test_errors_are_the_ones_that_the_client_knows(self):
        client = self.openai()
        with self.assertRaises(openai.NotFoundError) as caught:
            client.responses.create(model="gpt-5", input=QUESTION)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            client.responses.create(model="smol", input="word " * 9000, stream=True)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        for field, value in (
            ("previous_response_id", "resp_1"),
            ("conversation", "conv_1"),
            ("background", True),
        ):
            with self.assertRaises(openai.BadRequestError) as caught:
                client.responses.create(model="smol", input=QUESTION, **{field: value})
            self.assertEqual(caught.exception.param, field)
        with self.assertRaises(openai.BadRequestError) as caught:
            client.responses.create(model="smol", input=QUESTION, tools=[{"type": "web_search"}])
        self.assertEqual(caught.exception.param, "tools[0].type")

    def test_langchain_can_use_it(self):
        model = ChatOpenAI(
            model="smol", base_url=self.base, api_key="none", temperature=0, max_retries=0,
            max_tokens=20, use_responses_api=True,
        )
        whole = model.invoke(QUESTION)
        self.assertIn("4", whole.text)
        pieces = list(model.stream(QUESTION))
        self.assertGreater(len(pieces), 3)
        self.assertEqual("".join(piece.text for piece in pieces), whole.text)


def sampled(asked):
    """The package has no words for what its own newest models do not take."""
    body = {key: asked[key] for key in ("temperature",) if key in asked}
    rest = {key: value for key, value in asked.items() if key not in body}
    return {**rest, "extra_body": {**body, **rest.get("extra_body", {})}}


class MessagesTest(SmolTest):
    ASKED = dict(
        model="smol", max_tokens=20, temperature=0, messages=[{"role": "user", "content": QUESTION}]
    )

    def test_a_message_answers_and_can_be_followed_up(self):
        client = self.anthropic()
        answer = client.messages.create(**sampled(self.ASKED))
        self.assertIn("4", answer.content[0].text)
        self.assertEqual(answer.stop_reason, "end_turn")
        self.assertTrue(answer._request_id)
        again = client.messages.create(**sampled({
            **self.ASKED,
            "messages": [
                *self.ASKED["messages"],
                {"role": "assistant", "content": answer.content},
                {"role": "user", "content": "And 3+3?"},
            ],
        }))
        self.assertEqual(again.content[0].text, self.followed_up(answer.content[0].text))
        usage = again.usage
        self.assertGreater(usage.cache_read_input_tokens, 0)
        counted = client.messages.count_tokens(
            model="smol", messages=[*self.ASKED["messages"],
                                    {"role": "assistant", "content": answer.content},
                                    {"role": "user", "content": "And 3+3?"}],
        )
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_it_says_what_a_chat_says(self):
        chat = self.openai().chat.completions.create(
            model="smol", temperature=0.8, seed=3, max_tokens=30,
            messages=[{"role": "system", "content": "Answer briefly."},
                      {"role": "user", "content": QUESTION}],
        )
        message = self.anthropic().messages.create(
            model="smol", max_tokens=30, extra_body={"seed": 3, "temperature": 0.8},
            system=[{"type": "text", "text": "Answer briefly."}],
            messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        )
        self.assertEqual(message.content[0].text, chat.choices[0].message.content)

    def test_the_packages_own_stream_puts_it_together(self):
        whole = self.anthropic().messages.create(**sampled(self.ASKED))
        with self.anthropic().messages.stream(**sampled(self.ASKED)) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.content[0].text, text)
        self.assertEqual(final.stop_reason, whole.stop_reason)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)

    def test_all_of_it_has_the_packages_types(self):
        whole, events = self.messages(self.ASKED)
        self.assertEqual(whole.stop_reason, "end_turn")
        self.assertEqual(events[0].type, "message_start")
        self.assertEqual(events[-1].type, "message_stop")
        count = self.post("/messages/count_tokens", {"messages": self.ASKED["messages"]}).json()
        read(anthropic.types.MessageTokensCount, count)

    def test_a_stop_sequence_is_named(self):
        first = self.anthropic().messages.create(**sampled(self.ASKED)).content[0].text
        stop = first[3:6]
        whole, _ = self.messages({**self.ASKED, "stop_sequences": ["not there", stop]})
        self.assertEqual(whole.stop_reason, "stop_sequence")
        self.assertEqual(whole.stop_sequence, stop)
        self.assertEqual(whole.content[0].text, first[: first.find(stop)])

    def test_what_is_cut_says_so(self):
        whole, _ = self.messages({**self.ASKED, "max_tokens": 2})
        self.assertEqual(whole.stop_reason, "max_tokens")

    def test_an_answer_goes_on_from_what_the_assistant_began(self):
        begun = "2+2 equals"
        answer = self.anthropic().messages.create(**sampled({
            **self.ASKED,
            "messages": [*self.ASKED["messages"], {"role": "assistant", "content": begun}],
        }))
        self.assertTrue(answer.content[0].text.strip().startswith("4"), answer.content[0].text)

    def test_errors_are_the_ones_that_the_client_knows(self):
        client = self.anthropic()
        for change, error in (
            ({"model": "claude"}, anthropic.NotFoundError),
            ({"temperature": -1}, anthropic.BadRequestError),
            ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, anthropic.BadRequestError),
            ({"messages": [{"role": "user", "content": "word " * 9000}]}, anthropic.BadRequestError),
        ):
            with self.assertRaises(error) as caught:
                client.messages.create(**sampled({**self.ASKED, **change}))
            body = read(ErrorResponse, caught.exception.body)
            self.assertEqual(body.request_id, caught.exception.request_id)
        self.assertRegex(body.error.message, r"8192.*90\d\d|90\d\d.*8192")
        answer = self.post("/messages", {"messages": [{"role": "user", "content": "a"}]}, 400)
        self.assertIn("max_tokens", read(ErrorResponse, answer.json()).error.message)


class EndTest(unittest.TestCase):
    def test_the_end_of_the_server_is_an_error_in_the_stream(self):
        """Both streams are long; the second signal ends the server at once."""
        one = server.smol("--drain-seconds", 0)
        try:
            messages = [{"role": "user", "content": QUESTION}]
            never = {"ignore_eos": True}
            message = anthropic.Anthropic(
                base_url=one.address, api_key="none", max_retries=0
            ).messages.create(
                model="smol", max_tokens=8000, messages=messages, stream=True, extra_body=never
            )
            response = openai.OpenAI(
                base_url=one.base, api_key="none", max_retries=0
            ).responses.create(model="smol", input=QUESTION, stream=True, extra_body=never)
            next(e for e in message if e.type == "content_block_delta")
            next(e for e in response if e.type == "response.output_text.delta")
        finally:
            code = one.stop()
        self.assertEqual(code, 0)
        with self.assertRaises(anthropic.APIStatusError) as caught:
            list(message)
        self.assertEqual(caught.exception.type, "overloaded_error")
        rest = list(response)
        self.assertEqual([e.type for e in rest[-2:]], ["error", "response.failed"])
        self.assertEqual(rest[-1].response.status, "failed")


class KeysTest(unittest.TestCase):
    def test_a_wrong_key_is_an_authentication_error(self):
        path = server.tiny_model().with_name("protocol-keys")
        path.write_text("anna right\n")
        one = server.tiny("--api-key-file", path)
        try:
            ask = lambda key: anthropic.Anthropic(
                base_url=one.address, api_key=key, max_retries=0
            ).messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "a"}])
            with self.assertRaises(anthropic.AuthenticationError) as caught:
                ask("wrong")
            self.assertEqual(read(ErrorResponse, caught.exception.body).error.type,
                             "authentication_error")
            self.assertGreater(ask("right").input_tokens, 0)
        finally:
            self.assertEqual(one.stop(), 0)


WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class ToolsTest(ProtocolTest):
    start = staticmethod(server.scripting)

    SAID = server.say('Let me see. [weather(city="Oslo"), time()]', "It is $1, at $2.")
    FUNCTIONS = [
        {"type": "function", "name": "weather", "description": "The weather.",
         "parameters": WEATHER, "strict": True},
        {"type": "function", "name": "time", "parameters": {"type": "object", "properties": {}},
         "strict": None},
    ]
    TOOLS = [
        {"name": "weather", "description": "The weather.", "input_schema": WEATHER},
        {"name": "time", "input_schema": {"type": "object"}},
    ]

    def test_a_response_calls_and_gets_results_back(self):
        client = self.openai()
        items = [{"role": "user", "content": self.SAID}]
        first = client.responses.create(model="scripted", input=items, tools=self.FUNCTIONS)
        self.assertEqual(first.output_text, "Let me see. ")
        calls = [item for item in first.output if item.type == "function_call"]
        self.assertEqual([call.name for call in calls], ["weather", "time"])
        self.assertEqual([json.loads(call.arguments) for call in calls], [{"city": "Oslo"}, {}])
        items += first.output
        for call, output in zip(calls, ("cold", "noon")):
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
        second = client.responses.create(model="scripted", input=items, tools=self.FUNCTIONS)
        self.assertEqual(second.output_text, "It is cold, at noon.")

    def test_a_responses_stream_calls(self):
        with self.openai().responses.stream(
            model="scripted", input=self.SAID, tools=self.FUNCTIONS
        ) as stream:
            deltas = [e for e in stream if e.type == "response.function_call_arguments.delta"]
            final = stream.get_final_response()
        self.assertGreater(len(deltas), 2)
        arguments = [item.arguments for item in final.output if item.type == "function_call"]
        self.assertEqual("".join(e.delta for e in deltas), "".join(arguments))
        whole, events = self.responses(dict(input=self.SAID, tools=self.FUNCTIONS))
        self.assertEqual([item.type for item in whole.output],
                         ["message", "function_call", "function_call"])
        self.assertEqual(len({item.id for item in whole.output}), 3)

    def test_a_message_calls_and_gets_results_back(self):
        client = self.anthropic()
        messages = [{"role": "user", "content": self.SAID}]
        asked = dict(model="scripted", max_tokens=200, tools=self.TOOLS)
        first = client.messages.create(messages=messages, **asked)
        self.assertEqual(first.stop_reason, "tool_use")
        text, *calls = first.content
        self.assertEqual(text.text, "Let me see. ")
        self.assertEqual([(c.name, c.input) for c in calls],
                         [("weather", {"city": "Oslo"}), ("time", {})])
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": calls[0].id, "content": "cold"},
                {"type": "tool_result", "tool_use_id": calls[1].id,
                 "content": [{"type": "text", "text": "noon"}]},
            ]},
        ]
        second = client.messages.create(messages=messages, **asked)
        self.assertEqual(second.content[0].text, "It is cold, at noon.")
        self.assertEqual(second.stop_reason, "end_turn")
        # A result that is an error says so to the model.
        messages[-1]["content"][0]["is_error"] = True
        failed = client.messages.create(messages=messages, **asked)
        self.assertEqual(failed.content[0].text, "It is Error: cold, at noon.")

    def test_a_messages_stream_calls(self):
        asked = dict(
            model="scripted", max_tokens=200, tools=self.TOOLS,
            messages=[{"role": "user", "content": self.SAID}],
        )
        with self.anthropic().messages.stream(**asked) as stream:
            final = stream.get_final_message()
        self.assertEqual(final.stop_reason, "tool_use")
        self.assertEqual([b.input for b in final.content[1:]], [{"city": "Oslo"}, {}])
        whole, _ = self.messages(asked)
        self.assertEqual([b.type for b in whole.content], ["text", "tool_use", "tool_use"])

    def test_one_call_at_most_where_that_is_asked_for(self):
        whole, _ = self.responses(
            dict(input=self.SAID, tools=self.FUNCTIONS, parallel_tool_calls=False)
        )
        self.assertEqual(sum(item.type == "function_call" for item in whole.output), 1)
        message, _ = self.messages(dict(
            max_tokens=200, tools=self.TOOLS, messages=[{"role": "user", "content": self.SAID}],
            tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        ))
        self.assertEqual(sum(b.type == "tool_use" for b in message.content), 1)


class PicturesTest(ProtocolTest):
    start = staticmethod(server.tiny)

    def chat(self, picture):
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        return self.openai().chat.completions.create(
            model="tiny", temperature=0, max_tokens=12,
            messages=[{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What is this?"},
            ]}],
        ).choices[0].message.content

    def test_a_response_sees_what_a_chat_sees(self):
        for picture in (RED, CHESS):
            url = "data:image/png;base64," + base64.b64encode(picture).decode()
            response = self.openai().responses.create(
                model="tiny", temperature=0, max_output_tokens=12,
                input=[{"role": "user", "content": [
                    {"type": "input_image", "image_url": url, "detail": "auto"},
                    {"type": "input_text", "text": "What is this?"},
                ]}],
            )
            self.assertEqual(response.output_text, self.chat(picture))

    def test_a_message_sees_what_a_chat_sees(self):
        for picture in (RED, CHESS):
            message = self.anthropic().messages.create(
                model="tiny", max_tokens=12, extra_body={"temperature": 0},
                messages=[{"role": "user", "content": [
                    {"type": "image", "source": {
                        "type": "base64", "media_type": "image/png",
                        "data": base64.b64encode(picture).decode()}},
                    {"type": "text", "text": "What is this?"},
                ]}],
            )
            self.assertEqual(message.content[0].text, self.chat(picture))

    def test_no_picture_is_a_bad_request(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.anthropic().messages.create(
                model="tiny", max_tokens=12,
                messages=[{"role": "user", "content": [
                    {"type": "image", "source": {
                        "type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ]}],
            )
        self.assertEqual(caught.exception.type, "invalid_request_error")
        with self.assertRaises(openai.BadRequestError):
            self.openai().responses.create(
                model="tiny", input=[{"role": "user", "content": [
                    {"type": "input_image", "image_url": "https://example.org/a.png"}]}],
            )


if __name__ == "__main__":
    server.main()

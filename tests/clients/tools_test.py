"""Calls of tools in every form in which models say them, as the openai package hears them: whole,
as a stream, and as an asynchronous stream. The scripted server's model says them.

    python tools_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import asyncio
import json

import openai
import pydantic
import server


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("weather", city={"type": "string"}),
    tool("add", a={"type": "number"}, b={"type": "number"}),
    tool("plan", stops={"type": "array"}, fast={"type": "boolean"}, note={}),
    tool("now"),
]
OSLO, ROME = ("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})
ADD = ("add", {"a": 2, "b": -3.5})
PLAN = (
    "plan",
    {"stops": [{"city": "Rome", "days": [1, 2]}, {"days": []}], "fast": True, "note": None},
)
NOW = ("now", {})

# What the model says, the content that is left of it, the calls that are found.
FORMS = {
    "a Python list": ('[weather(city="Oslo")]', "", [OSLO]),
    "a Python list in single quotes": ("[weather(city='Oslo')]", "", [OSLO]),
    "a Python list between the tokens": (
        '<|python_start|>[weather(city="Oslo")]<|python_end|>',
        "",
        [OSLO],
    ),
    "a Python list after the first token alone": (
        '<|python_start|>[weather(city="Oslo")]',
        "",
        [OSLO],
    ),
    "a Python list that ends a message, not a turn": ('[weather(city="Oslo")]<|eom|>', "", [OSLO]),
    "JSON": ('{"name": "weather", "parameters": {"city": "Oslo"}}', "", [OSLO]),
    "JSON with arguments": ('{"name": "weather", "arguments": {"city": "Oslo"}}', "", [OSLO]),
    "JSON with a type": (
        '{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}',
        "",
        [OSLO],
    ),
    "JSON between the tokens": (
        '<|python_start|>{"name": "weather", "parameters": {"city": "Oslo"}}<|python_end|>',
        "",
        [OSLO],
    ),
    "JSON in a code fence": (
        '```json\n{"name": "weather", "parameters": {"city": "Oslo"}}\n```',
        "",
        [OSLO],
    ),
    "JSON between the words of Hermes": (
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>',
        "",
        [OSLO],
    ),
    "a list after prose": ('I look that up. [weather(city="Oslo")]', "I look that up. ", [OSLO]),
    "JSON after prose and the token": (
        'I look that up.<|python_start|>{"name": "weather", "parameters": {"city": "Oslo"}}',
        "I look that up.",
        [OSLO],
    ),
    "several in a Python list": (
        '[weather(city="Oslo"), add(a=2, b=-3.5), weather(city="Rome")]',
        "",
        [OSLO, ADD, ROME],
    ),
    "several JSON objects": (
        '{"name": "weather", "parameters": {"city": "Oslo"}}; '
        '{"name": "add", "parameters": {"a": 2, "b": -3.5}}',
        "",
        [OSLO, ADD],
    ),
    "several in a JSON list": (
        '[{"name": "weather", "parameters": {"city": "Oslo"}}, {"name": "now", "parameters": {}}]',
        "",
        [OSLO, NOW],
    ),
    "nested values as Python": (
        "[plan(stops=[{'city': 'Rome', 'days': [1, 2]}, {'days': []}], fast=True, note=None)]",
        "",
        [PLAN],
    ),
    "nested values as JSON": (
        '{"name": "plan", "parameters": {"stops": [{"city": "Rome", "days": [1, 2]}, {"days": []}],'
        ' "fast": true, "note": null}}',
        "",
        [PLAN],
    ),
    "other scripts and escapes": (
        r'[weather(city="Zürich 東京 🌧 \"quoted\" \n")]',
        "",
        [("weather", {"city": 'Zürich 東京 🌧 "quoted" \n'})],
    ),
    "no arguments as Python": ("[now()]", "", [NOW]),
    "no arguments as JSON": ('{"name": "now", "parameters": {}}', "", [NOW]),
    "a token before plain text": ("<|python_start|>It rains.", "It rains.", []),
    "plain text in other scripts": ("東京は雨です 🌧.", "東京は雨です 🌧.", []),
    "brackets that call nothing": ("See [1], {x} and [now].", "See [1], {x} and [now].", []),
    "a tool that there is not": ('[snow(city="Oslo")]', '[snow(city="Oslo")]', []),
    "JSON of a tool that there is not": (
        '{"name": "snow", "parameters": {}}',
        '{"name": "snow", "parameters": {}}',
        [],
    ),
    "a list without a value": ("[weather(city=)]", "[weather(city=)]", []),
    "JSON that ends too early": ('{"name": "weather", "param', '{"name": "weather", "param', []),
}


class Assembled:
    """A choice put together from its chunks, each of which has to be as clients expect it."""

    def __init__(self, test):
        self.test = test
        self.content, self.finish = "", None
        self.calls = []  # [id, name, arguments]

    def add(self, choice):
        self.test.assertIsNone(self.finish, "nothing comes after the reason for the end")
        self.finish = choice.finish_reason
        self.content += choice.delta.content or ""
        for delta in choice.delta.tool_calls or []:
            if delta.index == len(self.calls):
                self.test.assertTrue(delta.id)
                self.test.assertEqual(delta.type, "function")
                self.test.assertEqual(delta.function.arguments, "")
                self.calls.append([delta.id, delta.function.name, ""])
            else:
                self.test.assertEqual(delta.index, len(self.calls) - 1)
                self.test.assertIsNone(delta.id)
                self.test.assertIsNone(delta.type)
                self.test.assertIsNone(delta.function.name)
                self.test.assertIsInstance(delta.function.arguments, str)
                self.calls[-1][2] += delta.function.arguments
        return self

    def named(self):
        ids = [call[0] for call in self.calls]
        self.test.assertEqual(len(set(ids)), len(ids))
        return [(name, json.loads(arguments)) for _, name, arguments in self.calls]


class ToolsTest(server.ServedTest):
    start = staticmethod(server.scripting)

    def request(self, *parts, **options):
        messages = [{"role": "user", "content": server.say(*parts)}]
        return {"model": "scripted", "messages": messages, "tools": TOOLS, **options}

    def client(self):
        return openai.OpenAI(base_url=self.base, api_key="none", max_retries=0)

    def whole(self, request):
        """Content, calls and reason of the first choice."""
        choice = self.client().chat.completions.create(**request).choices[0]
        calls = choice.message.tool_calls or []
        for call in calls:
            self.assertEqual(call.type, "function")
        self.assertEqual(len({call.id for call in calls}), len(calls))
        named = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
        if named and not choice.message.content:
            self.assertIsNone(choice.message.content)
        return choice.message.content or "", named, choice.finish_reason

    def streamed(self, request):
        out = Assembled(self)
        for chunk in self.client().chat.completions.create(**request, stream=True):
            out.add(chunk.choices[0])
        return out

    async def streamed_later(self, client, request):
        out = Assembled(self)
        async for chunk in await client.chat.completions.create(**request, stream=True):
            out.add(chunk.choices[0])
        return out

    def test_every_form_of_a_call_is_found(self):
        for form, (said, content, calls) in FORMS.items():
            with self.subTest(form=form):
                request = self.request(said)
                expected = (content, calls, "tool_calls" if calls else "stop")
                self.assertEqual(self.whole(request), expected)
                stream = self.streamed(request)
                self.assertEqual((stream.content, stream.named(), stream.finish), expected)

    def test_every_form_of_a_call_is_found_in_streams_side_by_side(self):
        async def all_of_them():
            async with openai.AsyncOpenAI(base_url=self.base, api_key="none") as client:
                return await asyncio.gather(
                    *[self.streamed_later(client, self.request(f[0])) for f in FORMS.values()]
                )

        for (form, (_, content, calls)), stream in zip(FORMS.items(), asyncio.run(all_of_them())):
            with self.subTest(form=form):
                self.assertEqual((stream.content, stream.named()), (content, calls))

    def test_an_answer_that_is_cut_never_has_half_a_call(self):
        for said in (FORMS["a Python list"][0], FORMS["JSON"][0]):
            full = self.client().chat.completions.create(**self.request(said))
            for most in range(1, full.usage.completion_tokens + 1):
                with self.subTest(said=said, most=most):
                    request = self.request(said, max_tokens=most)
                    content, calls, finish = self.whole(request)
                    self.assertEqual(finish, "length")
                    self.assertIn(calls, ([], [OSLO]))
                    if not calls:
                        self.assertTrue(said.startswith(content))
                    stream = self.streamed(request)
                    self.assertEqual(stream.finish, "length")
                    if calls:
                        self.assertEqual(stream.named(), calls)
                    for _, _, arguments in [] if calls else stream.calls:
                        with self.assertRaises(json.JSONDecodeError):
                            json.loads(arguments)

    def test_a_call_that_breaks_off_is_text_when_whole_and_no_call_in_a_stream(self):
        said = '[weather(city="Oslo", '
        request = self.request(said + "unit=")
        self.assertEqual(self.whole(request), (said + "unit=", [], "stop"))
        stream = self.streamed(request)
        self.assertEqual(stream.finish, "stop")
        for _, _, arguments in stream.calls:
            with self.assertRaises(json.JSONDecodeError):
                json.loads(arguments)

    def test_the_choice_of_tools_is_kept(self):
        said, _, calls = FORMS["several in a Python list"]
        self.assertEqual(self.whole(self.request(said, tool_choice="none")), (said, [], "stop"))
        first = self.whole(self.request(said, parallel_tool_calls=False))
        self.assertEqual(first[1], calls[:1])
        named = {"type": "function", "function": {"name": "add"}}
        self.assertEqual(self.whole(self.request("[now()]", tool_choice=named))[1], [])
        forced = self.whole(self.request("[add(a=2, b=-3.5)]", tool_choice=named))
        self.assertEqual(forced, ("", [ADD], "tool_calls"))
        required = self.whole(self.request("[now()]", tool_choice="required"))
        self.assertEqual(required, ("", [NOW], "tool_calls"))

    def test_every_choice_has_calls_of_its_own(self):
        request = self.request("[now(), now()]", n=2)
        answer = self.client().chat.completions.create(**request)
        ids = {call.id for choice in answer.choices for call in choice.message.tool_calls}
        self.assertEqual(len(ids), 4)
        choices = [Assembled(self), Assembled(self)]
        for chunk in self.client().chat.completions.create(**request, stream=True):
            for choice in chunk.choices:
                choices[choice.index].add(choice)
        for choice in choices:
            self.assertEqual((choice.named(), choice.finish), ([NOW, NOW], "tool_calls"))
        self.assertEqual(len({call[0] for choice in choices for call in choice.calls}), 4)

    def test_log_probabilities_of_calls_are_all_there_in_a_stream(self):
        request = self.request(FORMS["JSON after prose and the token"][0], logprobs=True)
        whole = self.client().chat.completions.create(**request).choices[0].logprobs.content
        pieces = []
        for chunk in self.client().chat.completions.create(**request, stream=True):
            for choice in chunk.choices:
                pieces += choice.logprobs.content if choice.logprobs else []
        self.assertEqual(pieces, whole)

    def test_results_come_back_to_the_model(self):
        messages = [
            {
                "role": "user",
                "content": server.say('Wait. [weather(city="Oslo"), now()]', "Oslo has $1 at $2."),
            }
        ]
        client = self.client()
        first = client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
        message = first.choices[0].message
        self.assertEqual(message.content, "Wait. ")
        messages.append(message)
        for call, result in zip(message.tool_calls, ('{"sky": "grün", "c": -3}', "7 o'clock")):
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        last = client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
        self.assertEqual(
            last.choices[0].message.content, """Oslo has {"sky": "grün", "c": -3} at 7 o'clock."""
        )
        self.assertEqual(last.choices[0].finish_reason, "stop")

    def test_the_package_reads_arguments_into_types(self):
        class weather(pydantic.BaseModel):
            city: str

        request = self.request('[weather(city="Oslo")]')
        request["tools"] = [openai.pydantic_function_tool(weather)]  # strict, no other properties
        parsed = self.client().chat.completions.parse(**request).choices[0].message
        self.assertEqual(parsed.tool_calls[0].function.parsed_arguments, weather(city="Oslo"))
        with self.client().chat.completions.stream(**request) as stream:
            done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion()
        self.assertEqual(
            [(e.name, e.parsed_arguments) for e in done], [("weather", weather(city="Oslo"))]
        )
        self.assertEqual(final.choices[0].message.tool_calls[0].function.name, "weather")


if __name__ == "__main__":
    server.main()

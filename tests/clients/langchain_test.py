"""LangChain: chats, streams, tools, agents and retrieval by way of langchain-openai.

python langchain_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import asyncio
import json

import corpus
import server
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


@tool
def weather(city: str) -> dict:
    """The weather of a city."""
    return {"city": city, "celsius": {"Oslo": -3, "Rome": 14}[city]}


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class SmolTest(server.ServedTest):
    start = staticmethod(server.smol)

    def model(self, **options):
        return ChatOpenAI(
            model="smol",
            base_url=self.base,
            api_key="none",
            temperature=0,
            max_retries=0,
            **options,
        )

    def embeddings(self):
        return OpenAIEmbeddings(
            model="smol", base_url=self.base, api_key="none", check_embedding_ctx_length=False
        )

    def test_a_chat_and_its_stream(self):
        model = self.model(max_tokens=24)
        whole = model.invoke("What is 2+2?")
        self.assertIn("4", whole.content)
        self.assertGreater(whole.usage_metadata["output_tokens"], 0)
        pieces = [p.content for p in model.stream("What is 2+2?")]
        self.assertEqual("".join(pieces), whole.content)
        self.assertGreater(len(pieces), 3)

    def test_an_asynchronous_stream_with_its_usage(self):
        model = self.model(max_tokens=24, stream_usage=True)

        async def read():
            pieces = [piece async for piece in model.astream("What is 2+2?")]
            return sum(pieces[1:], start=pieces[0])

        whole, joined = model.invoke("What is 2+2?"), asyncio.run(read())
        self.assertEqual(joined.content, whole.content)
        counts = [
            {k: m.usage_metadata[k] for k in ("input_tokens", "output_tokens", "total_tokens")}
            for m in (joined, whole)
        ]
        self.assertEqual(*counts)
        self.assertEqual(joined.response_metadata["finish_reason"], "stop")

    def test_a_batch(self):
        asked = ["Say yes.", "Say no.", "Say maybe."]
        model = self.model(max_tokens=8)
        together = [answer.content for answer in model.batch(asked)]
        self.assertEqual(together, [model.invoke(one).content for one in asked])

    def test_retrieval_finds_the_document_that_a_question_is_about(self):
        store = InMemoryVectorStore(self.embeddings())
        store.add_documents(
            [Document(text, metadata={"name": name}) for name, text in corpus.DOCUMENTS.items()]
        )
        retriever = store.as_retriever(search_kwargs={"k": 1})
        for name, question in corpus.QUESTIONS.items():
            with self.subTest(name=name):
                self.assertEqual([d.metadata["name"] for d in retriever.invoke(question)], [name])

        prompts = []
        chain = (
            {
                "context": retriever | (lambda found: found[0].page_content),
                "question": RunnablePassthrough(),
            }
            | ChatPromptTemplate.from_template("Use this: {context}\n\nQuestion: {question}")
            | RunnableLambda(lambda prompt: prompts.append(prompt) or prompt)
            | self.model(max_tokens=40)
            | StrOutputParser()
        )
        answer = chain.invoke(corpus.QUESTIONS["lighthouse"])
        self.assertEqual("".join(chain.stream(corpus.QUESTIONS["lighthouse"])), answer)
        self.assertIn(corpus.DOCUMENTS["lighthouse"], prompts[0].to_string())
        self.assertTrue(answer)


class ScriptedTest(server.ServedTest):
    start = staticmethod(server.scripting)

    def model(self, **options):
        return ChatOpenAI(
            model="scripted", base_url=self.base, api_key="none", max_retries=0, **options
        )

    def test_calls_of_bound_tools_whole_and_as_a_stream(self):
        model = self.model().bind_tools([weather, add])
        asked = server.say('I look. [weather(city="Oslo"), add(a=2, b=3)]')
        whole = model.invoke(asked)
        self.assertEqual(whole.content, "I look. ")
        named = [(call["name"], call["args"]) for call in whole.tool_calls]
        self.assertEqual(named, [("weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})])
        self.assertEqual(whole.response_metadata["finish_reason"], "tool_calls")
        pieces = list(model.stream(asked))
        joined = sum(pieces[1:], start=pieces[0])
        self.assertEqual(joined.content, whole.content)
        self.assertEqual([(call["name"], call["args"]) for call in joined.tool_calls], named)
        self.assertEqual(joined.invalid_tool_calls, [])
        self.assertEqual(joined.response_metadata["finish_reason"], "tool_calls")

    def test_structured_output_by_a_forced_call(self):
        class Person(BaseModel):
            """A person."""

            name: str
            age: int

        model = self.model().with_structured_output(Person, method="function_calling")
        for said in (
            '[Person(name="Ada", age=36)]',
            '{"name": "Person", "parameters": {"name": "Ada", "age": 36}}',
        ):
            self.assertEqual(model.invoke(server.say(said)), Person(name="Ada", age=36))

    # Two tools, one after the other, then both at once, then the answer with all results.
    PLAY = server.say(
        'First the weather. <|python_start|>[weather(city="Oslo")]<|python_end|>',
        '{"name": "add", "parameters": {"a": 2, "b": 3}}',
        '[weather(city="Rome"), add(a=-3, b=14)]',
        "Oslo: $1. Sum: $2. Rome: $3. Sum: $4.",
    )

    def check(self, messages):
        kinds = [message.type for message in messages]
        self.assertEqual(kinds, "human ai tool ai tool ai tool tool ai".split())
        calls = [
            call for message in messages if message.type == "ai" for call in message.tool_calls
        ]
        results = [message for message in messages if message.type == "tool"]
        self.assertEqual([c["id"] for c in calls], [r.tool_call_id for r in results])
        self.assertEqual(json.loads(results[0].content), {"city": "Oslo", "celsius": -3})
        said = [result.content for result in results]
        self.assertEqual(
            messages[-1].content,
            f"Oslo: {said[0]}. Sum: {said[1]}. Rome: {said[2]}. Sum: {said[3]}.",
        )

    def test_an_agent_with_two_tools_loops_to_its_answer(self):
        agent = create_agent(self.model(), [weather, add], system_prompt="You have tools.")
        asked = {"messages": [{"role": "user", "content": self.PLAY}]}
        self.check(agent.invoke(asked)["messages"])
        self.check(asyncio.run(agent.ainvoke(asked))["messages"])

    def test_an_agent_streams_what_it_says(self):
        agent = create_agent(self.model(), [weather, add])
        asked = {"messages": [{"role": "user", "content": self.PLAY}]}
        said, end = "", None
        for mode, event in agent.stream(asked, stream_mode=["messages", "values"]):
            if mode == "values":
                end = event
            elif event[0].type == "AIMessageChunk":
                said += event[0].content
        self.check(end["messages"])
        spoken = [m.content for m in end["messages"] if m.type == "ai"]
        self.assertEqual(said, "".join(spoken))


if __name__ == "__main__":
    server.main()

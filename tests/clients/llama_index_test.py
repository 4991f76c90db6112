"""LlamaIndex: OpenAILike and OpenAILikeEmbedding, its query and chat engines, and its tools.

python llama_index_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import asyncio

import corpus
import server
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike


def weather(city: str) -> dict:
    """The weather of a city."""
    return {"city": city, "celsius": {"Oslo": -3, "Rome": 14}[city]}


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class SmolTest(server.ServedTest):
    start = staticmethod(server.smol)

    def model(self, **options):
        return OpenAILike(
            model="smol",
            api_base=self.base,
            api_key="none",
            temperature=0,
            max_retries=0,
            context_window=8192,
            **options,
        )

    def embedding(self):
        return OpenAILikeEmbedding(model_name="smol", api_base=self.base, api_key="none")

    def index(self):
        documents = [Document(text=text, id_=name) for name, text in corpus.DOCUMENTS.items()]
        return VectorStoreIndex.from_documents(documents, embed_model=self.embedding())

    def test_completions_and_chats(self):
        for is_chat in (False, True):
            model = self.model(is_chat_model=is_chat, max_tokens=16)
            whole = model.complete("Once upon a time")
            self.assertGreater(len(whole.text), 10)
            pieces = list(model.stream_complete("Once upon a time"))
            self.assertEqual(pieces[-1].text, whole.text)
        answer = model.chat([ChatMessage(role="user", content="What is 2+2?")])
        self.assertIn("4", answer.message.content)

    def test_embeddings(self):
        model = self.embedding()
        alone = model.get_text_embedding("a text")
        self.assertEqual(len(alone), 576)
        self.assertEqual(model.get_text_embedding_batch(["b", "a text"])[1], alone)

    def test_the_query_engine_answers_from_the_right_document(self):
        index = self.index()
        for is_chat in (True, False):
            model = self.model(is_chat_model=is_chat, max_tokens=32)
            engine = index.as_query_engine(llm=model, similarity_top_k=1)
            streaming = index.as_query_engine(llm=model, similarity_top_k=1, streaming=True)
            for name, question in corpus.QUESTIONS.items():
                with self.subTest(name=name, is_chat=is_chat):
                    answer = engine.query(question)
                    self.assertEqual([n.node.ref_doc_id for n in answer.source_nodes], [name])
                    self.assertTrue(str(answer))
            streamed = streaming.query(question)
            self.assertEqual("".join(streamed.response_gen), str(answer))

    def test_the_chat_engine_streams(self):
        asked = corpus.QUESTIONS["bees"]
        model = self.model(is_chat_model=True, max_tokens=32)
        make = lambda: self.index().as_chat_engine(
            chat_mode="context", llm=model, similarity_top_k=1
        )
        whole = make().chat(asked)
        self.assertEqual([n.node.ref_doc_id for n in whole.source_nodes], ["bees"])
        engine = make()
        self.assertEqual("".join(engine.stream_chat(asked).response_gen), str(whole))
        # The conversation goes on with what was said.
        self.assertTrue("".join(engine.stream_chat("Say that again.").response_gen))
        said = [message.content for message in engine.chat_history]
        self.assertEqual(said[:3], [asked, str(whole), "Say that again."])


class ScriptedTest(server.ServedTest):
    start = staticmethod(server.scripting)

    def model(self):
        return OpenAILike(
            model="scripted",
            api_base=self.base,
            api_key="none",
            is_chat_model=True,
            is_function_calling_model=True,
            max_retries=0,
        )

    def test_calls_of_tools_whole_and_as_a_stream(self):
        tools = [FunctionTool.from_defaults(weather), FunctionTool.from_defaults(add)]
        asked = server.say('I look. [weather(city="Oslo"), add(a=2, b=3)]')
        model = self.model()
        expected = [("weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})]
        options = dict(user_msg=asked, allow_parallel_tool_calls=True)
        whole = model.chat_with_tools(tools, **options)
        *_, last = model.stream_chat_with_tools(tools, **options)
        for answer in (whole, last):
            self.assertEqual(answer.message.content, "I look. ")
            calls = model.get_tool_calls_from_response(answer)
            self.assertEqual([(c.tool_name, c.tool_kwargs) for c in calls], expected)

    def test_a_tool_is_called_and_its_result_returned(self):
        tools = [FunctionTool.from_defaults(add)]
        asked = server.say('{"name": "add", "parameters": {"a": 2, "b": 3}}')
        self.assertEqual(str(self.model().predict_and_call(tools, user_msg=asked)), "5")

    def test_an_agent_with_two_tools_loops_to_its_answer(self):
        async def run():
            agent = FunctionAgent(
                tools=[weather, add], llm=self.model(), system_prompt="Use tools."
            )
            return await agent.run(
                server.say('[weather(city="Rome")]', "[add(a=2, b=3)]", "Rome: $1. Sum: $2.")
            )

        self.assertEqual(str(asyncio.run(run())), "Rome: {'city': 'Rome', 'celsius': 14}. Sum: 5.")


if __name__ == "__main__":
    server.main()

"""LangChain: chats, streams, tools, agents and retrieval by way of langchain-openai.

    python langchain_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import server
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


class SmolTest(server.ServedTest):
    start = staticmethod(server.smol)

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


if __name__ == "__main__":
    server.main()

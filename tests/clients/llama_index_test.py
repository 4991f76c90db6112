"""LlamaIndex: OpenAILike and OpenAILikeEmbedding.

    python llama_index_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import server
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike


class SmolTest(server.ServedTest):
    start = staticmethod(server.smol)

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


if __name__ == "__main__":
    server.main()

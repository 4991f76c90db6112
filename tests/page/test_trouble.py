"""What the page says when things take long or go wrong."""

import json
import tempfile

import servers
from browser import GONE, REFUSED, PageTest, expect


class TroubleTest(PageTest):
    @classmethod
    def setUpClass(cls):
        cls.real = servers.start()

    @classmethod
    def tearDownClass(cls):
        assert cls.real.stop() == 0

    def setUp(self):
        super().setUp()
        self.server = servers.Scripted(self.real.address)
        self.addCleanup(self.server.stop)

    def open(self):
        page = super().open(self.server.address)
        self.ready(page)
        return page

    def test_a_model_that_loads_is_waited_for(self):
        self.expected = [REFUSED.format(503)]
        self.server.loading = True
        page = super().open(self.server.address)
        expect(page.locator("#status")).to_have_text(
            "Not ready yet: the model is being loaded."
        )
        self.ask(page, "hello")
        expect(page.locator("#question")).to_have_value("hello")
        self.server.loading = False
        expect(page.locator("#model")).to_have_text("scripted")
        expect(page.locator("#status")).to_have_text("")
        page.keyboard.press("Enter")
        self.ended(page)

    def test_a_long_prompt_shows_how_much_of_it_is_read(self):
        def script(body, stream):
            stream.begin({"X-Drover-Warning": "a prompt of 900 tokens; remembers up to 500"})
            stream.data(servers.chunk(""))
            stream.raw(": read 1024 of 4096 tokens\n\n")
            self.server.held.wait(60)
            stream.text("here it is")
            stream.done(prompt=900, completion=3, cached=512)

        self.server.script = script
        page = self.open()
        self.ask(page, "hello")
        progress = self.answer(page).locator(".progress")
        expect(progress).to_have_text("Read 1,024 of 4,096 tokens")
        expect(progress.locator("progress")).to_have_attribute("value", "1024")
        expect(self.answer(page).locator(".warning")).to_have_text(
            "Take care: a prompt of 900 tokens; remembers up to 500."
        )
        self.server.held.set()
        self.ended(page)
        expect(progress).to_be_hidden()
        expect(self.answer(page).locator(".facts")).to_contain_text("prompt 900 tokens, 512 known")
        expect(page.locator("#fill-text")).to_have_text("903 of 1,000 tokens")
        expect(page.locator("#fill")).to_have_class("fill near")
        expect(page.locator("#fill")).to_have_attribute("aria-valuenow", "0.903")

    def test_an_error_in_a_stream_leaves_what_was_written(self):
        def script(body, stream):
            stream.text("half of")
            stream.data({"error": {"message": "the server is about to end", "code": "not_ready"}})

        self.server.script = script
        page = self.open()
        self.ask(page, "hello")
        self.ended(page, "failed")
        expect(self.answer(page).locator(".markdown")).to_have_text("half of")
        expect(page.get_by_role("alert")).to_have_text("the server is about to end")
        self.server.says("all of it")
        page.get_by_role("button", name="Try again").click()
        self.ended(page)
        expect(self.answer(page).locator(".markdown")).to_have_text("all of it")
        expect(self.answer(page).locator(".error")).to_be_hidden()

    def test_a_stream_that_is_cut_says_so(self):
        self.server.script = lambda body, stream: stream.text("half of")
        page = self.open()
        self.ask(page, "hello")
        self.ended(page, "failed")
        expect(page.get_by_role("alert")).to_have_text("The answer was cut before its end.")

    def test_what_is_no_answer_says_so(self):
        page = self.open()
        for raw in ("data: {\n\n", "data: [1\n\n"):
            self.server.script = lambda body, stream: stream.raw(raw)
            self.ask(page, "hello")
            self.ended(page, "failed")
            expect(page.get_by_role("alert").last).to_have_text(
                "The server sent what is not JSON."
            )

    def test_a_full_server_says_when_to_come_again(self):
        self.expected = [REFUSED.format(429)]

        def script(body, stream):
            stream.handler.send_response(429)
            stream.handler.send_header("Retry-After", "7")
            stream.handler.end_headers()
            stream.handler.wfile.write(b'{"error": {"message": "too many requests are in hand"}}')

        self.server.script = script
        page = self.open()
        self.ask(page, "hello")
        self.ended(page, "failed")
        expect(page.get_by_role("alert")).to_have_text(
            "too many requests are in hand (try again in 7 s)"
        )

    def test_a_question_without_an_answer_is_not_part_of_what_follows(self):
        self.expected = [REFUSED.format(500)]
        self.server.script = lambda body, stream: stream.refuse(500, "something went wrong")
        page = self.open()
        self.ask(page, "lost")
        self.ended(page, "failed")
        self.server.says("found")
        self.ask(page, "asked again")
        expect(page.locator(".answer")).to_have_count(2)
        self.ended(page)
        self.assertEqual(
            self.server.asked[-1]["messages"], [{"role": "user", "content": "asked again"}]
        )

    def test_events_may_be_cut_anywhere(self):
        whole = (
            'data: {"choices":[{"index":0,"delta":{"content":"caf\u00e9 "}}]}\r\n\r\n'
            ": a comment\r\n"
            'data: {"choices":[{"index":0,\r\ndata: "delta":{"content":"\U0001f999"}}]}\r\n\r\n'
            'event: x\rid: 4\rdata:{"choices":[{"index":0,"delta":{"content":" end"}}]}\r\r'
            "data: [DONE]\n\n"
        ).encode()

        def script(body, stream):
            stream.begin()
            for byte in whole:
                stream.handler.wfile.write(bytes([byte]))
                stream.handler.wfile.flush()

        self.server.script = script
        page = self.open()
        self.ask(page, "hello")
        self.ended(page)
        expect(self.answer(page).locator(".markdown")).to_have_text("caf\u00e9 \U0001f999 end")

    def test_a_line_end_may_be_cut_in_two(self):
        # What comes together is for the network to say: so here without one.
        read = """async (pieces) => {
          const {EventReader} = await import("/page/events.js");
          const events = new EventReader();
          return pieces.flatMap((piece) => events.push(piece));
        }"""
        page = self.open()
        text = "data: a\r\ndata: b\r\n\r\n: c\r\rdata:d\n\n\ndata\rdata: \r\r: e\n"
        expected = [{"data": "a\nb"}, {"comment": "c"}, {"data": "d"}, {"data": "\n"}, {"comment": "e"}]
        self.assertEqual(page.evaluate(read, [text]), expected)
        self.assertEqual(page.evaluate(read, list(text)), expected)
        for i in range(len(text)):
            self.assertEqual(page.evaluate(read, [text[:i], text[i:]]), expected)

    def test_a_new_chat_ends_the_answer_of_the_old_one(self):
        def script(body, stream):
            stream.text("old words")
            self.server.held.wait(60)
            stream.text("more old words")
            stream.done()

        self.server.script = script
        page = self.open()
        self.ask(page, "hello")
        expect(self.answer(page).locator(".markdown")).to_have_text("old words")
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".turn")).to_have_count(0)
        self.server.held.set()
        self.server.says("new words")
        self.ask(page, "again")
        self.ended(page)
        expect(page.locator("#transcript")).not_to_contain_text("old words")
        self.assertEqual(len(self.server.asked[-1]["messages"]), 1)


class RealTroubleTest(PageTest):
    def test_a_prompt_beyond_the_context_is_answered_in_words(self):
        self.expected = [REFUSED.format(400)]
        server = servers.start()
        self.addCleanup(server.stop)
        page = self.open(server.address)
        self.ready(page)
        self.setting(page, max_tokens=3)
        length = json.loads(server.ask("/v1/models"))["data"][0]["max_model_len"]
        text = "1 " * length  # two characters are a token at least
        self.ask(page, text)
        self.ended(page, "failed")
        expect(page.get_by_role("alert")).to_contain_text(str(length))
        expect(page.get_by_role("alert")).to_contain_text("A new chat, or a shorter question")
        page.locator(".question").hover()
        page.get_by_role("button", name="Edit").click()
        self.ask(page, "short")
        self.ended(page)

    def test_a_server_that_has_gone_is_missed(self):
        self.expected = [GONE]
        server = servers.start()
        self.addCleanup(server.stop)
        page = self.open(server.address)
        self.ready(page)
        self.never_end(page)
        self.ask(page, "go on for ever")
        expect(self.answer(page).locator(".markdown")).not_to_be_empty()
        server.process.kill()
        server.stop()
        self.ended(page, "failed")
        expect(page.get_by_role("alert")).to_have_text(
            "The connection was lost before the answer's end."
        )
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert")).to_have_text("The server cannot be reached.")

    def test_what_the_recall_map_says_is_shown(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            lengths = [{"length": 8, "trials": 9, "recall": 1.0, "kinds": {}},
                       {"length": 16, "trials": 9, "recall": 0.0, "kinds": {}}]
            json.dump({"drover_recall_map": 1, "model": "tiny", "threshold": 0.9,
                       "control_trials": 9, "control_recall": 0.0, "lengths": lengths}, file)
            file.flush()
            server = servers.start("--recall-map", file.name)
            self.addCleanup(server.stop)
            page = self.open(server.address)
            self.ready(page)
            self.setting(page, max_tokens=3)
            self.ask(page, "a question of some more tokens than eight")
            self.ended(page)
            expect(self.answer(page).locator(".warning")).to_contain_text("remember up to 8")



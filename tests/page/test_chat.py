"""Talking to the real server."""

import base64
import json
import tempfile

import servers
from browser import PageTest, expect, png

SMALL_GIF = base64.b64decode("R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs=")


def picture(name, data, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": data}


# A DataTransfer with a file in it, as a drop or a paste brings it.
TRANSFER = """([name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  return transfer;
}"""


class ChatTest(PageTest):
    @classmethod
    def setUpClass(cls):
        cls.server = servers.start()

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def open(self, **options):
        page = super().open(self.server.address, **options)
        self.ready(page)
        return page

    def api_answer(self, **body):
        return json.loads(self.server.ask("/v1/chat/completions", {"model": "tiny", **body}))

    def test_an_answer_is_the_one_that_the_api_gives(self):
        page = self.open()
        self.setting(page, system="Be brief.", temperature=0.7, top_p=0.9, top_k=50, min_p=0.01,
                     max_tokens=40, seed=7)
        expect(page.locator("#open-settings")).to_have_text("Settings (7)")
        self.ask(page, "hello there")
        self.ended(page)
        asked = dict(temperature=0.7, top_p=0.9, top_k=50, min_p=0.01, max_tokens=40, seed=7)
        first = [{"role": "system", "content": "Be brief."},
                 {"role": "user", "content": "hello there"}]
        api = self.api_answer(messages=first, **asked)
        said = api["choices"][0]["message"]["content"]
        turn = self.exported(page)["turns"][0]
        self.assertEqual(turn["answer"]["text"], said)
        self.assertEqual(turn["answer"]["usage"]["prompt_tokens"], api["usage"]["prompt_tokens"])
        written = api["usage"]["completion_tokens"]
        expect(self.answer(page).locator(".facts")).to_contain_text(f"{written} tokens")
        expect(self.answer(page).locator(".facts")).to_contain_text("tokens/s")

        # The next question brings along what was said.
        self.ask(page, "and then?")
        expect(page.locator(".answer")).to_have_count(2)
        self.ended(page)
        second = first + [{"role": "assistant", "content": said},
                          {"role": "user", "content": "and then?"}]
        api = self.api_answer(messages=second, **asked)
        turn = self.exported(page)["turns"][1]
        self.assertEqual(turn["answer"]["text"], api["choices"][0]["message"]["content"])
        # And the meter shows what all of it takes.
        length = json.loads(self.server.ask("/v1/models"))["data"][0]["max_model_len"]
        total = api["usage"]["total_tokens"]
        expect(page.locator("#fill-text")).to_have_text(f"{total:,} of {length:,} tokens")

    def test_an_answer_is_shown_while_it_is_written_until_it_is_stopped(self):
        page = self.open()
        self.never_end(page)
        self.ask(page, "go on for ever")
        answer = self.answer(page)
        expect(answer).to_have_attribute("data-state", "writing")
        expect(answer).to_have_attribute("aria-busy", "true")
        text = answer.locator(".markdown")
        expect(text).not_to_be_empty()
        before = len(text.text_content())
        page.wait_for_timeout(50)
        while len(text.text_content()) == before:
            page.wait_for_timeout(50)
        page.get_by_role("button", name="Stop").click()
        self.ended(page, "stopped")
        expect(answer).to_have_attribute("aria-busy", "false")
        expect(answer.locator(".facts")).to_contain_text("stopped")
        expect(page.locator("#question")).to_be_focused()
        while self.server.metric("drover_requests_in_hand") > 0:
            page.wait_for_timeout(50)
        self.assertGreater(len(self.exported(page)["turns"][0]["answer"]["text"]), before // 2)

    def test_trying_again_gives_another_answer_in_its_place(self):
        page = self.open()
        self.setting(page, max_tokens=30)
        self.ask(page, "hello")
        self.ended(page)
        first = self.exported(page)["turns"]
        page.get_by_role("button", name="Try again").click()
        expect(self.answer(page).locator(".facts")).to_contain_text("known")  # of the prompt
        self.ended(page)
        second = self.exported(page)["turns"]
        self.assertEqual(len(second), 1)
        # Both by chance, 30 tokens of some hundred each.
        self.assertNotEqual(first[0]["answer"]["text"], second[0]["answer"]["text"])
        self.setting(page, seed=3)
        texts = []
        for _ in range(2):
            page.get_by_role("button", name="Try again").click()
            self.ended(page)
            texts.append(self.exported(page)["turns"][0]["answer"]["text"])
        self.assertEqual(texts[0], texts[1])

    def test_the_last_question_can_be_put_otherwise(self):
        page = self.open()
        self.setting(page, max_tokens=5)
        for question in ("one", "two"):
            self.ask(page, question)
            self.ended(page)
        expect(page.get_by_role("button", name="Edit")).to_have_count(1)  # the others are history
        page.locator(".question").last.hover()
        page.get_by_role("button", name="Edit").click()
        expect(page.locator("#question")).to_have_value("two")
        expect(page.locator("#question")).to_be_focused()
        expect(page.locator(".turn")).to_have_count(1)
        self.ask(page, "three")
        self.ended(page)
        turns = self.exported(page)["turns"]
        self.assertEqual([turn["question"]["text"] for turn in turns], ["one", "three"])
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".turn")).to_have_count(0)
        expect(page.locator("#welcome")).to_be_visible()

    def test_pictures_come_by_button_drop_and_paste(self):
        red = png(40, 30, lambda x, y: (200, 0, 0))
        blue = png(60, 60, lambda x, y: (0, 0, 4 * x))
        page = self.open()
        self.setting(page, max_tokens=3, temperature=0)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add picture").click()
        chooser.value.set_files([picture("red.png", red),
                                 picture("dot.gif", SMALL_GIF, "image/gif")])
        thumbnails = page.locator("#pictures img")
        expect(thumbnails).to_have_count(2)

        transfer = page.evaluate_handle(
            TRANSFER, ["blue.png", "image/png", base64.b64encode(blue).decode()]
        )
        page.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
        expect(page.locator("#drop")).to_be_visible()
        page.dispatch_event("main", "drop", {"dataTransfer": transfer})
        expect(page.locator("#drop")).to_be_hidden()
        expect(thumbnails).to_have_count(3)

        page.evaluate(
            """(transfer) => document.getElementById("question").dispatchEvent(
                 new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}))""",
            page.evaluate_handle(
                TRANSFER, ["pasted.png", "image/png", base64.b64encode(red).decode()]
            ),
        )
        expect(thumbnails).to_have_count(4)
        page.get_by_role("button", name="Remove dot.gif").click()
        expect(thumbnails).to_have_count(3)
        self.ask(page, "what is this?")
        self.ended(page)
        expect(page.locator(".question img")).to_have_count(3)
        expect(thumbnails).to_have_count(0)
        turn = self.exported(page)["turns"][0]
        self.assertEqual(
            [p["name"] for p in turn["question"]["pictures"]], ["red.png", "blue.png", "pasted.png"]
        )
        url = lambda data: "data:image/png;base64," + base64.b64encode(data).decode()
        parts = [{"type": "image_url", "image_url": {"url": url(data)}} for data in (red, blue, red)]
        api = self.api_answer(
            messages=[{"role": "user",
                       "content": [*parts, {"type": "text", "text": "what is this?"}]}],
            temperature=0, max_tokens=3,
        )
        self.assertEqual(turn["answer"]["text"], api["choices"][0]["message"]["content"])
        self.assertEqual(turn["answer"]["usage"]["prompt_tokens"], api["usage"]["prompt_tokens"])

    def test_a_picture_of_another_kind_becomes_one_that_the_server_reads(self):
        page = self.open()
        self.setting(page, max_tokens=3)
        page.locator("#file").set_input_files([picture("dot.gif", SMALL_GIF, "image/gif")])
        expect(page.locator("#pictures img")).to_have_count(1)
        page.get_by_role("button", name="Send").click()  # a picture alone is a question
        self.ended(page)
        [one] = self.exported(page)["turns"][0]["question"]["pictures"]
        self.assertTrue(one["url"].startswith("data:image/png;base64,"))

    def test_what_is_no_picture_is_refused_in_words(self):
        page = self.open()
        page.locator("#file").set_input_files([picture("notes.png", b"these are words")])
        expect(page.locator("#status")).to_have_text(
            "notes.png is no picture that this browser can read."
        )
        expect(page.locator("#pictures img")).to_have_count(0)


class KeyTest(PageTest):
    def test_a_server_with_keys_is_asked_with_the_one_that_is_given(self):
        self.expected = [r"status of 401"]
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            keys.write("anna right\n")
            keys.flush()
            server = servers.start("--api-key-file", keys.name)
            self.addCleanup(server.stop)
            page = self.open(server.address)
            dialog = page.locator("#key")
            expect(dialog).to_be_visible()
            page.get_by_label("API key").fill("wrong")
            page.keyboard.press("Enter")
            expect(dialog).to_contain_text("not known here")
            page.get_by_label("API key").fill("right")
            page.keyboard.press("Enter")
            expect(dialog).to_be_hidden()
            self.ready(page)
            self.setting(page, max_tokens=3)
            self.ask(page, "hello")
            self.ended(page)
            # In memory alone, unless its owner wants otherwise.
            page.reload()
            expect(dialog).to_be_visible()
            page.get_by_label("API key").fill("right")
            page.get_by_label("Keep it").check()
            page.get_by_role("button", name="Go on").click()
            self.ready(page)
            page.reload()
            self.ready(page)
            expect(dialog).to_be_hidden()
            kept = page.evaluate("JSON.stringify({...localStorage})")
            self.assertNotIn("right", kept)

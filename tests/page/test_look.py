"""Light and dark, narrow and wide, and hands that stay on the keyboard; with a scripted server."""

import servers
from browser import PageTest, expect, png


class LookTest(PageTest):
    @classmethod
    def setUpClass(cls):
        cls.real = servers.start()
        cls.server = servers.Scripted(cls.real.address)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        assert cls.real.stop() == 0

    def open(self, **options):
        page = super().open(self.server.address, **options)
        self.ready(page)
        return page

    def brightness(self, page, selector, property):
        """From 0 to 1, of a colour as it is painted."""
        return page.locator(selector).first.evaluate(
            """(node, property) => {
                 const canvas = document.createElement("canvas");
                 const context = canvas.getContext("2d");
                 context.fillStyle = getComputedStyle(node)[property];
                 context.fillRect(0, 0, 1, 1);
                 const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
                 return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
               }""",
            property,
        )

    def test_colours_are_the_systems_until_others_are_chosen(self):
        for scheme in ("light", "dark"):
            page = self.open(color_scheme=scheme)
            is_dark = lambda: self.brightness(page, "body", "backgroundColor") < 0.2
            self.assertEqual(is_dark(), scheme == "dark")
            button = page.get_by_role("button", name="Dark colours")
            expect(button).to_have_attribute("aria-pressed", str(scheme == "dark").lower())
            button.click()
            self.assertEqual(is_dark(), scheme == "light")
            expect(button).to_have_attribute("aria-pressed", str(scheme == "light").lower())
            page.reload()
            self.assertEqual(is_dark(), scheme == "light")

    def test_words_can_be_told_from_their_ground(self):
        # WCAG 2.2, 1.4.3: 4.5 to 1, by the formula for relative luminance.
        contrast = """(node) => {
          const canvas = document.createElement("canvas");
          const context = canvas.getContext("2d", {willReadFrequently: true});
          const paint = (colour) => {
            context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1);
            const channels = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
            const [r, g, b] = channels.map((c) =>
              c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const grounds = [];
          for (let at = node; at !== null; at = at.parentElement) grounds.unshift(at);
          let ground = 0;
          for (const at of grounds) ground = paint(getComputedStyle(at).backgroundColor);
          const words = paint(getComputedStyle(node).color);
          return (Math.max(words, ground) + 0.05) / (Math.min(words, ground) + 0.05);
        }"""

        def script(body, stream):
            stream.begin({"X-Drover-Warning": "a long prompt"})
            stream.text("Some `code`, a [link](https://example.com)\n\n> and a quote\n\n```c\nint x;\n```\n")
            stream.data({"error": {"message": "it broke", "code": None}})

        self.server.script = script
        for scheme in ("light", "dark"):
            page = self.open(color_scheme=scheme)
            self.ask(page, "hello")
            self.ended(page, "failed")
            for selector in (".question-text", ".markdown p", ".markdown a", ".markdown p > code",
                             ".markdown blockquote p", ".code figcaption span", ".code code",
                             ".warning", ".error", ".facts", "#new-chat", "#model", "#fill-text",
                             "#keys", "#send", "#status", ".answer .actions button"):
                with self.subTest(scheme=scheme, selector=selector):
                    value = page.locator(selector).first.evaluate(contrast)
                    self.assertGreaterEqual(round(value, 2), 4.5)

    def test_it_works_at_360_pixels(self):
        table = "| one | two | three |\n|---|---|---|\n" + "| " + "word " * 30 + "| b | c |\n"
        self.server.says("A paragraph with averyveryveryveryveryveryveryverylongword_" + "x" * 200 +
                         f"\n\n```\n{'code ' * 100}\n```\n\n{table}")
        for width in (360, 1100):
            page = self.open(viewport={"width": width, "height": 640})
            page.locator("#file").set_input_files(
                [{"name": f"{i}.png", "mimeType": "image/png",
                  "buffer": png(900, 300, lambda x, y: (x % 256, y % 256, 90))} for i in range(5)]
            )
            expect(page.locator("#pictures img")).to_have_count(5)
            self.ask(page, "a question of one word" + "y" * 200)
            self.ended(page)
            page.locator("#question").fill("\n".join(["line"] * 60))
            for node in ("html", "body", "main", ".bar", ".ask"):
                wide = page.locator(node).evaluate("(n) => n.scrollWidth - n.clientWidth")
                self.assertLessEqual(wide, 0, f"{node} at {width}")
            for name in ("New chat", "Export", "Settings", "Dark colours", "Send", "Add picture"):
                box = page.get_by_role("button", name=name).bounding_box()
                self.assertGreaterEqual(box["x"], 0, name)
                self.assertLessEqual(box["x"] + box["width"], width, name)
                self.assertLessEqual(box["y"] + box["height"], 640, name)
                self.assertGreaterEqual(box["height"], 24, name)  # WCAG 2.2, 2.5.8
            main = page.locator("main").bounding_box()
            self.assertGreater(main["height"], 150, "room for the conversation")
            page.get_by_role("button", name="Settings").click()
            box = page.locator("#settings").bounding_box()
            self.assertGreaterEqual(box["x"], 0)
            self.assertLessEqual(box["x"] + box["width"], width)
            page.keyboard.press("Escape")

    def test_all_of_it_can_be_done_with_keys(self):
        self.server.says("An answer\n\n```c\nint x;\n```\n")
        page = self.open()
        question = page.locator("#question")
        expect(question).to_be_focused()
        page.keyboard.type("first line")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("second line")
        expect(question).to_have_value("first line\nsecond line")
        page.keyboard.press("Enter")
        self.ended(page)
        self.assertEqual(
            self.server.asked[-1]["messages"][-1]["content"], "first line\nsecond line"
        )
        expect(question).to_be_focused()
        expect(question).to_have_value("")

        # From the top, in the order in which it is seen, each with a ring around it.
        page.locator("#new-chat").evaluate("() => document.activeElement.blur()")
        page.evaluate("document.querySelector('.skip').focus()")
        order = []
        for _ in range(16):
            node = page.locator(":focus")
            if node.count() == 0:
                break
            ring = node.evaluate("(n) => n.matches('#question') ? 'own' : getComputedStyle(n).outlineStyle")
            label = node.evaluate(
                "(n) => n.getAttribute('aria-label') ?? n.labels?.[0]?.textContent ?? n.textContent"
            )
            self.assertNotEqual(ring, "none", label)
            order.append(label.strip())
            if label.strip() == "Send":
                break
            page.keyboard.press("Tab")
        self.assertEqual(
            order,
            ["Skip to the question", "New chat", "Export", "Settings", "Dark colours", "Edit",
             "Copy", "Code in c", "Copy", "Try again", "Question", "Add picture", "Send"],
        )
        page.evaluate("document.querySelector('.skip').focus()")
        page.keyboard.press("Enter")
        expect(question).to_be_focused()

        page.locator("#open-settings").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#settings")).to_be_visible()
        page.keyboard.press("Tab")
        page.keyboard.type("0.5")
        page.keyboard.press("Escape")
        expect(page.locator("#settings")).to_be_hidden()
        expect(page.locator("#open-settings")).to_be_focused()
        expect(page.locator("#open-settings")).to_have_text("Settings (1)")

    def test_escape_stops_and_enter_waits_for_the_answer(self):
        def script(body, stream):
            stream.text("it begins")
            self.server.held.wait(60)

        self.server.script = script
        self.addCleanup(self.server.held.clear)
        self.addCleanup(self.server.held.set)
        page = self.open()
        self.ask(page, "hello")
        expect(self.answer(page).locator(".markdown")).to_have_text("it begins")
        self.ask(page, "another")
        expect(page.locator("#status")).to_have_text("An answer is being written; Esc stops it.")
        expect(page.locator("#question")).to_have_value("another")
        expect(page.locator(".turn")).to_have_count(1)
        page.keyboard.press("Escape")
        self.ended(page, "stopped")
        expect(page.locator("#question")).to_have_value("another")

    def test_enter_that_ends_a_character_of_an_input_method_sends_nothing(self):
        page = self.open()
        page.locator("#question").fill("\u3053")
        page.locator("#question").evaluate(
            "(n) => n.dispatchEvent(new KeyboardEvent('keydown',"
            " {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
        )
        expect(page.locator("#question")).to_have_value("\u3053")
        expect(page.locator(".turn")).to_have_count(0)

    def test_the_reader_who_has_gone_up_is_left_there(self):
        lines = [f"line {i}\n\n" for i in range(60)]

        def script(body, stream):
            for line in lines:
                stream.text(line)
            self.server.held.wait(60)
            stream.text("the end")
            stream.done()

        self.server.script = script
        self.addCleanup(self.server.held.clear)
        for goes_up in (False, True):
            self.server.held.clear()
            page = self.open()
            self.ask(page, "hello")
            expect(self.answer(page).locator(".markdown p")).to_have_count(60)
            main = page.locator("main")
            if goes_up:
                # Until the page has heard of it, which is before the second picture from now.
                main.evaluate(
                    """(n) => new Promise((done) => {
                         n.scrollTop = 0;
                         requestAnimationFrame(() => requestAnimationFrame(done));
                       })"""
                )
            self.server.held.set()
            self.ended(page)
            below = main.evaluate("(n) => n.scrollHeight - n.scrollTop - n.clientHeight")
            if goes_up:
                self.assertEqual(main.evaluate("(n) => n.scrollTop"), 0)
            else:
                self.assertLess(below, 48)

"""Writes docs/images/page-*.png: the page with SmolLM2, which really answers.

    python screenshots.py DROVER
"""

import pathlib
import sys

sys.dont_write_bytecode = True
import browser
import servers

MODEL = pathlib.Path(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
OUT = pathlib.Path("docs/images")
QUESTIONS = [
    "What is the capital of France, and what is it known for?",
    "Write a short Python function that adds two numbers, and explain it in one sentence.",
]


class Shots(browser.PageTest):
    def shoot(self, page, name):
        page.mouse.move(0, 0)
        page.screenshot(path=OUT / f"page-{name}.png", animations="disabled", caret="hide")

    def talk(self, address, questions, **options):
        page = self.open(address, **options)
        self.ready(page)
        self.setting(page, temperature=0, max_tokens=160)
        for question in questions:
            self.ask(page, question)
            self.ended(page)
        page.wait_for_timeout(300)
        return page

    def runTest(self):
        OUT.mkdir(parents=True, exist_ok=True)
        server = servers.Drover(drover, MODEL, "--alias", "SmolLM2-135M-Instruct")
        self.addCleanup(server.stop)
        wide, narrow = {"width": 1080, "height": 760}, {"width": 360, "height": 720}
        self.shoot(self.talk(server.address, QUESTIONS, viewport=wide), "light")
        self.shoot(self.talk(server.address, QUESTIONS, viewport=wide, color_scheme="dark"), "dark")
        self.shoot(
            self.talk(server.address, QUESTIONS, viewport=narrow, device_scale_factor=2), "narrow"
        )
        page = self.open(server.address, viewport=wide)
        self.ready(page)
        pictures = {"evening.png": evening, "hills.png": hills}
        page.locator("#file").set_input_files(
            [{"name": name, "mimeType": "image/png", "buffer": browser.png(240, 180, colour)}
             for name, colour in pictures.items()]
        )
        browser.expect(page.locator("#pictures img")).to_have_count(2)
        page.locator("#question").fill("Which of these was taken later in the day?")
        self.shoot(page, "picture")


def blend(a, b, part):
    return tuple(int(x + (y - x) * part) for x, y in zip(a, b))


def evening(x, y):
    if (x - 165) ** 2 + (y - 92) ** 2 < 24**2:
        return (255, 226, 160)
    if y > 110 + 14 * abs((x % 120) - 60) / 60:
        return blend((92, 52, 74), (38, 24, 48), (y - 110) / 70)
    return blend((54, 44, 96), (246, 150, 96), min(1, y / 115))


def hills(x, y):
    if (x - 60) ** 2 + (y - 40) ** 2 < 15**2:
        return (255, 246, 214)
    ridge = 95 + 22 * abs(((x + 30) % 160) - 80) / 80
    near = 130 + 18 * abs((x % 200) - 100) / 100
    if y > near:
        return (70, 122, 78)
    return (120, 164, 120) if y > ridge else blend((126, 186, 228), (222, 238, 246), min(1, y / 110))


if __name__ == "__main__":
    drover = sys.argv[1]
    import unittest

    result = unittest.TextTestRunner().run(Shots())
    browser.close()
    sys.exit(not result.wasSuccessful())

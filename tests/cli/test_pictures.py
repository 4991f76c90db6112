"""Pictures on the command line: run, chat, score, inspect, convert and quantize."""

import json
import pathlib
import struct
import zlib

import harness
from harness import CliTest, read_npy


def png(width, height, colour):
    """A PNG file of one colour, or of what colour(x, y) says."""
    at = colour if callable(colour) else lambda x, y: colour
    rows = b"".join(
        b"\0" + b"".join(bytes(at(x, y)) for x in range(width)) for y in range(height)
    )

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png_size(data):
    return struct.unpack(">II", data[16:24])


class Pictures(CliTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        shared = pathlib.Path(cls._shared.name)
        cls.eyes = shared / "eyes.gguf"
        made = harness.run("bench", "--make", "tiny-vision", cls.eyes, "--type", "f32")
        assert made.code == 0, made.err
        cls.red, cls.blue, cls.wide = (shared / f"{name}.png" for name in ("red", "blue", "wide"))
        cls.red.write_bytes(png(20, 30, (200, 0, 0)))
        cls.blue.write_bytes(png(20, 30, (0, 0, 200)))
        cls.wide.write_bytes(png(150, 60, lambda x, y: (x, 4 * y, 99)))

    def ask(self, *args, **more):
        return self.good("run", self.eyes, "hello", "-n", 6, "--seed", 1, "--json", *args, **more)

    def test_a_picture_is_part_of_the_prompt(self):
        blind = self.ask().json
        red = self.ask("--image", self.red).json
        # One tile: three markers and (56 / 7 / 2)^2 patches.
        self.assertEqual(red["prompt_tokens"] - blind["prompt_tokens"], 3 + 16)
        self.assertEqual(self.ask("--image", self.red).json["tokens"], red["tokens"])
        self.assertNotEqual(self.ask("--image", self.blue).json["tokens"], red["tokens"])
        both = self.ask("--image", self.red, "--image", self.wide).json
        layout = self.good("inspect", self.eyes, "--image", self.wide, "--json").json[0]
        self.assertEqual(layout["tokens"], 3 + 16 * layout["tiles"] + layout["tiles"] - 1)
        self.assertEqual(
            both["prompt_tokens"] - red["prompt_tokens"], layout["tokens"], "two pictures"
        )

    def test_standard_input_can_be_a_picture(self):
        named = self.ask("--image", self.red).json
        piped = self.ask("--image", "-", stdin=self.red.read_bytes()).json
        self.assertEqual(piped["tokens"], named["tokens"])
        self.bad(2, "standard input", "run", self.eyes, "--image", "-", stdin=self.red.read_bytes())
        twice = ["--image", "-", "--image", "-"]
        self.bad(2, "one picture only", "run", self.eyes, "hi", *twice, stdin=self.red.read_bytes())
        self.bad(2, "one picture only", "inspect", *twice, stdin=self.red.read_bytes())
        self.bad(2, "both", "score", self.eyes, "--text", "-", "--image", "-")

    def test_pictures_stand_where_the_prompt_says(self):
        def run(prompt, *images):
            flags = [word for image in images for word in ("--image", image)]
            return self.good(
                "run", self.eyes, prompt, "-n", 6, "--seed", 1, "--json", *flags
            ).json["tokens"]

        before = run("hello", self.red)
        self.assertEqual(run("<image>hello", self.red), before)
        self.assertNotEqual(run("hello<image>", self.red), before)
        self.assertNotEqual(
            run("<image>or<image>", self.red, self.blue), run("<image>or<image>", self.blue, self.red)
        )
        self.bad(
            2, ["<image>", "2 pictures", "got 1"], "run", self.eyes, "one <image>",
            "--image", self.red, "--image", self.blue,
        )
        # Without pictures it is text like any other.
        self.good("run", self.eyes, "an <image> tag", "-n", 2)

    def test_what_is_no_picture_is_refused_in_words(self):
        text = self.folder / "notes.txt"
        text.write_text("no picture at all")
        self.bad(1, ["notes.txt", "JPEG, PNG"], "run", self.eyes, "hi", "--image", text)
        broken = self.folder / "broken.png"
        broken.write_bytes(self.red.read_bytes()[:60])
        self.bad(65, "broken.png", "run", self.eyes, "hi", "--image", broken)
        self.bad(66, "none.png", "run", self.eyes, "hi", "--image", self.folder / "none.png")

    def test_a_text_only_model_says_so(self):
        for command in (["run", self.scout, "hi"], ["inspect", self.scout]):
            self.bad(1, "text only", *command, "--image", self.red)
        self.bad(1, "--mmproj", "run", self.scout, "hi", "--image", self.red)

    def test_a_prompt_that_does_not_fit_is_refused(self):
        self.bad(
            1, ["context of 16 tokens"], "run", self.eyes, "hi", "--image", self.red, "-c", 16
        )

    def test_inspect_shows_canvas_tiles_and_tokens(self):
        big = self.folder / "big.png"
        big.write_bytes(png(1920, 1080, (1, 2, 3)))
        released = self.good("inspect", "--image", big, "--json").json[0]
        self.assertEqual(released["canvas"], {"rows": 3, "cols": 5})
        self.assertEqual(released["resized"], {"width": 1680, "height": 945})
        self.assertEqual((released["tiles"], released["tokens"]), (16, 2322))
        text = self.good("inspect", "--image", big).text
        for words in ("1920 x 1080", "5 x 3 tiles of 336 px", "1680 x 945", "2322"):
            self.assertIn(words, text)

    def test_inspect_writes_the_tiles(self):
        tiles = self.folder / "tiles"
        self.bad(73, "tiles", "inspect", "--image", self.wide, "--tiles", tiles)
        tiles.mkdir()
        layout = self.good(
            "inspect", self.eyes, "--image", self.wide, "--tiles", tiles, "--json"
        ).json[0]
        files = sorted(tiles.iterdir())
        self.assertEqual(len(files), layout["tiles"])
        for file in files:
            self.assertEqual(png_size(file.read_bytes()), (56, 56))
        # A tile is a picture again, and of one tile's size it is itself.
        again = self.folder / "again"
        again.mkdir()
        self.good("inspect", self.eyes, "--image", files[0], "--tiles", again)
        (only,) = again.iterdir()
        self.assertEqual(only.read_bytes(), files[0].read_bytes())
        self.bad(2, "--image", "inspect", self.eyes, "--tiles", tiles)

    def test_score_reads_pictures(self):
        text = self.folder / "text.txt"
        text.write_text("<image>what is this? it is red.")
        ask = ["score", self.eyes, "--text", text, "--json"]
        seen = self.good(*ask, "--image", self.red).json
        self.assertNotEqual(seen["nll"], self.good(*ask, "--image", self.blue).json["nll"])
        # The picture's own tokens are not scored.
        text.write_text("what is this? it is red.")
        self.assertEqual(self.good(*ask).json["tokens"], seen["tokens"])
        self.bad(1, "context of 12", *ask, "--image", self.red, "-c", 12)

        text.write_text("<image>")
        self.bad(2, "words beside the pictures", *ask, "--image", self.red)
        patch = self.patch_token()
        ids = ",".join(map(str, [65, 66] + [patch] * 16 + [67]))
        one, two = (self.folder / name for name in ("one.npy", "two.npy"))
        for out, image in ((one, self.red), (two, self.blue)):
            self.good(
                "score", self.eyes, "--tokens", ids, "--logits", out, "--image", image
            )
        one, two = read_npy(one), read_npy(two)
        self.assertEqual(one[:2], two[:2])
        self.assertNotEqual(one[-1], two[-1])
        self.bad(
            2, "16 patch tokens", "score", self.eyes, "--tokens", "65,66", "--logits",
            self.folder / "x.npy", "--image", self.red,
        )

    def patch_token(self):
        out = self.good("tokenize", self.eyes, "<|patch|>", "--special", "--json").json
        return out[-1]["id"]

    def chat(self, lines, *more):
        return self.good(
            "chat", self.eyes, "-n", 6, "--seed", 1, *more,
            stdin="".join(line + "\n" for line in lines).encode(),
        )

    def test_chat_shows_a_picture_with_the_next_question(self):
        one = self.good("run", self.eyes, "hello", "-n", 6, "--seed", 1, "--image", self.red)
        out = self.chat([f"/image {self.red}", "hello"]).text
        self.assertEqual(out, "Seen; ask about it.\n" + one.text)
        self.assertIn("none.png", self.chat(["/image none.png"]).err)
        self.assertIn("name of a file", self.chat(["/image -"]).err)
        # Pictures that wait can be dropped, and those that cannot be asked about never wait.
        plain = self.chat(["hello"]).text
        dropped = self.chat([f"/image {self.red}", "/image", "hello"]).text
        self.assertEqual(dropped, "Seen; ask about it.\nDropped 1 pictures.\n" + plain)
        small = self.chat([f"/image {self.wide}", "hello"], "-c", 30)
        self.assertIn("context of 30 tokens", small.err)
        self.assertEqual(small.text, self.chat(["hello"], "-c", 30).text)

    def test_a_saved_conversation_keeps_its_pictures(self):
        saved, one, two = (self.folder / name for name in ("saved", "one", "two"))
        self.chat([f"/image {self.wide}", "hello", f"/save {saved}"])
        messages = json.loads(saved.read_text())["messages"]
        self.assertEqual(
            messages[0]["content"],
            [
                {"type": "image_url", "image_url": {"url": f"file://{self.wide}"}},
                {"type": "text", "text": "hello"},
            ],
        )
        # Parts come back in their order, and names with spaces as they are.
        odd = self.folder / "a b%é.png"
        odd.write_bytes(self.red.read_bytes())
        again = self.folder / "again"
        self.chat([f"/image {odd}", "is <image> red?", f"/save {saved}"])
        parts = json.loads(saved.read_text())["messages"][0]["content"]
        self.assertEqual([p["type"] for p in parts], ["text", "image_url", "text"])
        self.assertTrue(parts[1]["image_url"]["url"].endswith("/a%20b%25%C3%A9.png"))
        self.chat([f"/load {saved}", f"/save {again}"])
        self.assertEqual(saved.read_text(), again.read_text())
        # The seed of the second answer is one more than that of the first.
        self.chat([f"/image {self.wide}", "hello", "and?", f"/save {one}"], "--temp", 0)
        self.chat([f"/image {self.wide}", "hello", f"/save {saved}"], "--temp", 0)
        self.chat([f"/load {saved}", "and?", f"/save {two}"], "--temp", 0)
        self.assertEqual(one.read_text(), two.read_text())
        saved.write_text(
            json.dumps(
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
                    "url": "https://example.org/a.png"}}]}]}
            )
        )
        self.assertIn("file://", self.chat([f"/load {saved}"]).err)

    def test_the_encoder_may_be_in_a_file_of_its_own(self):
        text, mmproj = self.folder / "text.gguf", self.folder / "mmproj.gguf"
        self.good("quantize", self.eyes, text, "--type", "f32", "--mmproj", mmproj)
        ask = ["run", text, "hello", "-n", 6, "--seed", 1, "--json", "--image", self.wide]
        self.bad(1, "--mmproj", *ask)
        whole = self.ask("--image", self.wide).json
        self.assertEqual(self.good(*ask, "--mmproj", mmproj).json["tokens"], whole["tokens"])
        self.bad(73, "already exists", "quantize", self.eyes, text, "--type", "f32")
        same = self.folder / "same.gguf"
        self.bad(
            2, "another file", "quantize", self.eyes, same, "--type", "f32", "--mmproj",
            self.folder / "." / "same.gguf",
        )
        self.assertFalse(same.exists())
        # The encoder's file can be looked at, and quantised alone.
        self.assertIn("hidden size 256", self.good("inspect", mmproj).text)
        alone = self.good("inspect", mmproj, "--json").json
        self.assertEqual(alone["vision"]["tile_tokens"], 16)
        beside = self.good("inspect", text, "--mmproj", mmproj, "--json").json
        self.assertEqual(beside["vision"], alone["vision"])
        small = self.folder / "small.gguf"
        report = self.good("quantize", mmproj, small, "--type", "q4_k_m", "--json").json
        self.assertIn("q8_0", report["types"])
        self.good(*ask, "--mmproj", small)
        both = self.good(
            "quantize", self.eyes, text, "--type", "q8_0", "--mmproj", mmproj, "--force", "--json"
        ).json
        self.assertIn("q8_0", both["mmproj"]["types"])
        self.assertEqual(both["mmproj"]["out"], str(mmproj))
        blind = self.folder / "blind.gguf"
        self.good("quantize", self.eyes, blind, "--type", "q8_0", "--no-vision")
        self.assertIsNone(self.good("inspect", blind, "--json").json["vision"])
        self.assertEqual(
            self.good("inspect", self.eyes, "--json").json["vision"]["tile_tokens"], 16
        )
        self.assertIn("tiles of 56 px", self.good("inspect", self.eyes).text)

    def test_hosts_of_pictures_are_read_before_the_model(self):
        for hosts in ("http://a", "a/b", "*", "good.example,u@b"):
            self.bad(
                2, "hosts of pictures: expected HOST", "serve", self.folder / "none.gguf",
                "--allow-pictures-from", hosts,
            )

    def test_convert_takes_the_encoder_along(self):
        folder = harness.copy_golden("multimodal", self.folder / "model")
        one, text, mmproj = (self.folder / name for name in ("one", "text", "mmproj"))
        self.good("convert", folder, one, "--type", "f32")
        self.assertEqual(self.good("inspect", one, "--json").json["vision"]["layers"], 1)
        self.good("convert", folder, text, "--type", "f32", "--mmproj", mmproj)
        self.assertIsNone(self.good("inspect", text, "--json").json["vision"])

    def test_bench_measures_tiles(self):
        flags = ["--repeat", 1, "--threads", 1, "--json"]
        out = self.good("bench", self.eyes, "--tiles", "1,3", *flags).json
        self.assertEqual([r["tiles"] for r in out["results"]], [1, 3])
        for r in out["results"]:
            self.assertEqual(r["test"], "tiles")
            self.assertGreater(r["seconds_per_tile"], 0)
        self.assertIn("seconds per tile", self.good("bench", self.eyes, "--tiles", 1, "-r", 1).text)
        self.bad(2, "tiles", "bench", self.eyes, "--tiles", 0, *flags)
        self.bad(2, "tiles", "bench", "--tiles", 1, "--compare", self.eyes, self.eyes)

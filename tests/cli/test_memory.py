"""What was read is kept: context files, the cache's limits, and attention that leaves out pages."""

import json
import resource

import harness
from harness import CliTest


class Memory(CliTest):
    TEXT = "the ship came into the harbour at noon, and nobody was there to see it. " * 9

    def setUp(self):
        super().setUp()
        self.file = self.folder / "harbour.context"
        self.read = ["run", self.endless, "--raw", "--seed", 1, "-n", 12, "--json"]

    def tokens(self, text):
        return [token["id"] for token in self.good("tokenize", self.endless, text, "--json").json]

    def test_a_saved_text_goes_on_as_if_it_had_been_read_now(self):
        first = self.good(*self.read, "-p", self.TEXT, "--save-context", self.file).json
        self.assertEqual(first["cached_tokens"], 0)
        again = self.good(*self.read, "-p", " and then", "--context-file", self.file).json
        # Chunks here are too short for rings to be kept: the last one is read again.
        self.assertGreater(again["cached_tokens"], first["prompt_tokens"] - 16)
        # The whole text at once, by its tokens.
        whole = self.tokens(self.TEXT) + first["tokens"] + self.tokens(" and then")
        self.assertEqual(len(whole), again["prompt_tokens"])
        asked = {"prompt": whole, "max_tokens": 12, "seed": 1}
        line = {"custom_id": "a", "url": "/v1/completions", "body": asked}
        (self.folder / "in").write_text(json.dumps(line))
        self.good("batch", self.endless, self.folder / "in", self.folder / "out")
        body = json.loads((self.folder / "out").read_text())["response"]["body"]
        self.assertEqual(body["choices"][0]["text"], again["text"])
        # The same place of the text gives the same answer, and the file stays as it is.
        before = self.file.read_bytes()
        tokens = ["--prompt-tokens", first["prompt_tokens"]]
        same = self.good(*self.read, "-p", "", *tokens, "--context-file", self.file).json
        self.assertEqual(same["tokens"], first["tokens"])
        self.assertEqual(self.file.read_bytes(), before)

    def test_a_longer_text_is_appended_and_another_replaces(self):
        ask = [*self.read, "--save-context", self.file]
        self.good(*ask, "-p", self.TEXT)
        small = self.file.stat().st_size
        more = self.good(*ask, "-p", " and then", "--context-file", self.file).json
        self.assertGreater(self.file.stat().st_size, small)
        self.good(*ask, "-p", "another text")
        bad = [*self.read, "-p", "", "--context-file", self.file]
        self.bad(2, "prompt-tokens", *bad, "--prompt-tokens", more["prompt_tokens"])

    def test_a_conversation_goes_on_in_its_format(self):
        ask = ["run", self.scout, "--seed", 1, "-n", 12, "--temp", 0, "--json"]
        one = self.good(*ask, "-p", "where is the ship?", "--save-context", self.file).json
        two = self.good(*ask, "-p", "and now?", "--context-file", self.file).json
        # <|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n
        known = one["prompt_tokens"] + one["answer_tokens"]
        turn = 1 + 1 + 1 + 5 + len("and now?") + 1 + 1 + 1 + 10
        self.assertEqual(two["prompt_tokens"], known + turn)
        system = [*ask, "-p", "x", "--context-file", self.file, "--system", "be kind"]
        self.bad(2, "begun already", *system)

    def test_another_model_or_cache_is_told_apart(self):
        self.good(*self.read, "-p", self.TEXT, "--save-context", self.file)
        go_on = ["run", self.llama, "--raw", "-p", "x", "--context-file", self.file]
        self.bad(2, str(self.file), *go_on)
        self.bad(
            2, "int8", *self.read, "-p", "x", "--context-file", self.file, "--cache-type", "int8"
        )
        self.bad(66, "No such file", *self.read, "-p", "x", "--context-file", self.folder / "none")
        data = bytearray(self.file.read_bytes())
        data[len(data) // 2] ^= 4
        self.file.write_bytes(data)
        self.bad(65, str(self.file), *self.read, "-p", "x", "--context-file", self.file)

    def test_a_full_disk_costs_the_file_and_not_the_answer(self):
        def no_room():
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

        plain = self.good("run", self.scout, "hi", "--seed", 1, "-n", 12)
        full = harness.run(
            *("run", self.scout, "hi", "--seed", 1, "-n", 12, "--save-context", self.file),
            preexec_fn=no_room,
        )
        self.assertEqual(full.out, plain.out)
        self.assertEqual(full.code, 73, full.err)
        self.assertFalse(self.file.exists())
        missing = self.folder / "none" / "file"
        self.bad(73, "none", "run", self.scout, "hi", "--save-context", missing)

    def test_the_cache_has_a_limit_and_a_place(self):
        ask = ["run", self.scout, "the ship", "--seed", 1, "-n", 12]
        plain = self.good(*ask)
        self.bad(
            1, ["bytes are needed", "100 are available"[4:]], *ask, "--cache-memory", "1K"
        )
        self.assertEqual(self.good(*ask, "--cache-memory", "64M").out, plain.out)
        self.assertEqual(self.good(*ask, "--cache-dir", self.folder).out, plain.out)
        self.assertEqual(list(self.folder.iterdir()), [])
        self.bad(66, "none", *ask, "--cache-dir", self.folder / "none")

    def test_shortcuts_and_choices_of_pages_can_be_switched(self):
        ask = [*self.read, "-p", self.TEXT]
        plain = self.good(*ask).json
        for flag in ("--no-dead-prefill", "--no-chunk-reuse"):
            self.assertEqual(self.good(*ask, flag).json["tokens"], plain["tokens"])
        self.good(*ask, "--absolute-positions")
        bounded = self.good(*ask, "--attention", "bounded", "--epsilon", 0).json
        self.assertEqual(bounded["tokens"], plain["tokens"])
        self.assertEqual(bounded["pages_visited"], bounded["pages_seen"])
        budget = self.good(*ask, "--attention", "budget", "--pages", 2).json
        self.assertLess(budget["pages_visited"], budget["pages_seen"])
        self.assertLess(budget["attention_kept"], 1)
        self.assertNotIn("pages_seen", plain)
        self.bad(2, "epsilon", *ask, "--attention", "bounded", "--epsilon", 1)
        self.bad(2, "at least 2", *ask, "--attention", "budget", "--pages", 1)
        self.bad(2, "attention", *ask, "--attention", "some")

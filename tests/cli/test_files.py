"""inspect, tokenize, detokenize, score, convert and quantize: what is in files, and files made of
files."""

import json
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import unittest

import harness
from harness import CliTest, GOLDENS, Terminal

TYPES = (
    *("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
    *("q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "iq4_nl", "iq4_xs", "mxfp4"),
)


def decoder_parameters(folder):
    """Total and active, counted from the tensors that are there."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    total = routed = 0
    for name, shape in harness.safetensors_shapes(folder).items():
        if name.startswith(("vision_model.", "multi_modal_projector.")) or ".vision_" in name:
            continue
        total += math.prod(shape)
        if ".experts." in name:
            routed += math.prod(shape)
    if routed == 0:
        return total, total
    experts, used = config["num_local_experts"], config["num_experts_per_tok"]
    return total, total - routed * (experts - used) // experts


class Inspect(CliTest):
    def test_parameters_are_those_of_the_tensors_in_every_golden(self):
        for folder in sorted(path for path in GOLDENS.iterdir() if path.is_dir()):
            facts = self.good("inspect", folder, "--json").json
            self.assertEqual(
                (facts["parameters"]["total"], facts["parameters"]["active"]),
                decoder_parameters(folder),
                folder,
            )

    def test_json_tells_the_scout_like_configuration(self):
        facts = self.good("inspect", self.scout, "--json", "--tensors").json
        config = facts["config"]
        self.assertEqual(config["architecture"], "llama4")
        self.assertEqual(config["rope_layers"], [True, True, True, False])
        self.assertEqual(config["chunked_layers"], [True, True, True, False])
        self.assertEqual(
            (config["layers"], config["chunk"], config["vocab"], config["context"]),
            (4, 16, 64, 1024),
        )
        self.assertEqual(facts["tokenizer"], {"tokens": 62, "chat_format": "chatml"})
        shapes = {t["name"]: t["shape"] for t in facts["tensors"]}
        self.assertEqual(shapes, harness.safetensors_shapes(self.scout))
        self.assertEqual(facts["weight_bytes"], sum(4 * math.prod(s) for s in shapes.values()))
        # One global layer, two bytes each; values stand in rows of whole vectors.
        size = config["head_dim"] + math.ceil(config["head_dim"] / 16) * 16
        self.assertEqual(
            facts["cache"]["bf16"]["global_bytes_per_token"], config["kv_heads"] * size * 2
        )

    def test_text_tells_the_same_in_words(self):
        text = self.good("inspect", self.scout).text
        total, active = decoder_parameters(self.scout)
        for words in (
            f"{total} in all, {active} at work per token",
            "Hugging Face folder",
            "chunk of 16 tokens",
            "NoPE",
            "chat format chatml",
            "not stated",
            "f32",
        ):
            self.assertIn(words, text)
        self.assertNotIn("experts", self.good("inspect", self.llama).text)
        self.assertIn("every layer sees the whole past", self.good("inspect", self.llama).text)
        self.assertIn(
            "model.embed_tokens.weight", self.good("inspect", self.scout, "--tensors").text
        )

    def test_a_gguf_file_tells_what_its_folder_tells(self):
        for golden in ("scout", "maverick", "multimodal", "llama", "tied"):
            out = self.folder / f"{golden}.gguf"
            self.good("convert", GOLDENS / golden, out, "--type", "f32")
            ours, theirs = (
                self.good("inspect", path, "--json").json for path in (out, GOLDENS / golden)
            )
            self.assertEqual(ours["parameters"], theirs["parameters"])
            self.assertEqual(ours["cache"], theirs["cache"])
            for key in (
                "rope_layers",
                "chunked_layers",
                "moe_layers",
                "chunk",
                "qk_norm",
                "context",
            ):
                self.assertEqual(ours["config"][key], theirs["config"][key], key)
            self.assertEqual(ours["name"], golden)
            self.assertIn("GGUF version 3", ours["format"])

    def test_licences_say_what_they_ask_also_after_converting(self):
        for front, words in (
            ("license: apache-2.0", "Pass on the licence text"),
            (
                "license: other\nlicense_name: llama4\nlicense_link: https://example.org/l",
                "Built with Llama",
            ),
            ("license: llama3.1", "Above 700 million monthly users"),
            ("license: mit", "copyright notice"),
        ):
            shutil.rmtree(self.folder / "m", ignore_errors=True)
            model = harness.copy_golden("scout", self.folder / "m")
            (model / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
            self.assertIn(words, self.good("inspect", model).text)
            self.good("convert", model, self.folder / "m.gguf", "--force")
            self.assertIn(words, self.good("inspect", self.folder / "m.gguf").text)
        self.assertEqual(
            self.good("inspect", self.folder / "m.gguf", "--json").json["licence"]["id"], "mit"
        )

    def test_hostile_names_cannot_steer_the_terminal_or_break_json(self):
        model = harness.copy_golden("scout", self.folder / "evil\x1b[31m")
        (model / "README.md").write_bytes(b"---\nlicense: \x1b]0;x\x07\xff\n---\n")
        self.assertNotIn(b"\x1b", self.good("inspect", model, "--tensors").out)
        facts = self.good("inspect", model, "--json")
        self.assertEqual(
            json.loads(facts.out.decode("utf-8"))["licence"]["id"], "\x1b]0;x\x07\ufffd"
        )

    @unittest.skipUnless(harness.SMOLLM2.exists(), "SmolLM2 is not in .cache/models")
    def test_a_real_model(self):
        facts = self.good("inspect", harness.SMOLLM2, "--json").json
        self.assertEqual(facts["config"]["architecture"], "llama")
        self.assertEqual(facts["parameters"]["total"], 134515008)
        self.assertEqual(facts["tokenizer"], {"tokens": 49152, "chat_format": "chatml"})


class Tokenize(CliTest):
    def test_tokens_are_those_of_the_vocabulary_and_back(self):
        out = self.good("tokenize", self.scout, "the thing").text
        ids = [int(word) for word in out.split()]
        self.assertEqual([harness.TOKENS[i] for i in ids], ["the", " ", "th", "i", "n", "g"])
        self.assertEqual(self.good("detokenize", self.scout, *ids).out, b"the thing")
        self.assertEqual(
            self.good("detokenize", self.scout, ",".join(map(str, ids))).out, b"the thing"
        )
        self.assertEqual(self.good("detokenize", self.scout, stdin=out.encode()).out, b"the thing")

    def test_any_bytes_survive_the_round_trip_as_far_as_there_are_tokens(self):
        source = random.Random(11)
        alphabet = [harness.token_bytes([i]) for i in range(4, len(harness.TOKENS))]
        text = b"".join(source.choice(alphabet) for _ in range(20000))
        ids = self.good("tokenize", self.scout, stdin=text).out
        self.assertEqual(self.good("detokenize", self.scout, stdin=ids).out, text, "seed 11")

    def test_control_tokens_come_only_when_asked(self):
        text = "<|im_start|>a"
        self.assertEqual(self.good("tokenize", self.scout, text, "--special").text.split()[0], "1")
        self.assertEqual(int(self.good("tokenize", self.scout, text, "--count").text), 13)
        self.assertEqual(self.good("detokenize", self.scout, 1, 6).out, b"a")
        self.assertEqual(
            self.good("detokenize", self.scout, 1, 6, "--special").out, b"<|im_start|>a"
        )
        self.bad(2, "has no begin-of-text token", "tokenize", self.scout, "a", "--bos")

    def test_json_gives_bytes_and_text_where_there_is_text(self):
        tokens = self.good("tokenize", self.scout, "--json", stdin="t\u00e9".encode()).json
        self.assertEqual(tokens[0], {"id": harness.TOKENS.index("t"), "text": "t", "bytes": [116]})
        self.assertEqual([t["bytes"] for t in tokens[1:]], [[0xC3], [0xA9]])
        self.assertNotIn("text", tokens[1])

    def test_nothing_is_no_tokens(self):
        self.assertEqual(self.good("tokenize", self.scout, "").out, b"\n")
        self.assertEqual(self.good("tokenize", self.scout, "--json").json, [])
        self.assertEqual(self.good("detokenize", self.scout).out, b"")

    def test_numbers_that_are_no_tokens_are_refused(self):
        for bad in ("62", "99999999999999999999", "x", "1.5", "0x10", "1;2"):
            self.bad(2, f"token: expected 0 to 61, got '{bad}'", "detokenize", self.scout, bad)
        self.bad(2, "got '-1'", "detokenize", self.scout, stdin=b"-1")

    def test_a_tokenizer_file_is_enough(self):
        expected = self.good("tokenize", self.scout, "the").out
        self.assertEqual(self.good("tokenize", self.scout / "tokenizer.json", "the").out, expected)
        for path in self.scout.glob("*.json"):
            shutil.copy(path, self.folder)
        self.assertEqual(self.good("tokenize", self.folder, "the").out, expected)
        self.bad(1, "has no tokenizer", "tokenize", GOLDENS / "scout", "the")


class Tokenizer(CliTest):
    TEXT = "the ship came into the harbour at noon, and the ship was empty. " * 20

    def test_a_vocabulary_is_learnt_and_read(self):
        texts = [self.folder / "a.txt", self.folder / "b.txt"]
        for path in texts:
            path.write_text(self.TEXT)
        out = self.folder / "tokenizer.json"
        report = self.good(
            "tokenizer", "train", *texts, "--vocab", 300, "--out", out, "--json"
        ).json
        self.assertEqual((report["vocabulary"], report["merges"]), (300, 29))
        count = int(self.good("tokenize", out, self.TEXT, "--count").text)
        self.assertEqual(2 * count, report["tokens"])
        chat = "<|header_start|>user<|header_end|>"
        ids = self.good("tokenize", out, chat, "--special").text.split()
        self.assertEqual(self.good("detokenize", out, *ids, "--special").text, chat)

    def test_what_cannot_be_learnt_is_said(self):
        text = self.folder / "a.txt"
        text.write_text("a b")
        out = self.folder / "tokenizer.json"
        learn = ("tokenizer", "train", text, "--out", out)
        self.bad(2, "expected 271 to", *learn, "--vocab", 260)
        self.bad(2, "train", "tokenizer", "learn", text, "--out", out)
        self.bad(66, "gone.txt", "tokenizer", "train", self.folder / "gone.txt", "--out", out)
        self.assertFalse(out.exists())
        few = self.good(*learn, "--special-tokens", "<|end_of_text|>")
        self.assertIn("257 tokens instead of 4096", few.err)


class Score(CliTest):
    TEXT = "the ship came into the harbour at noon, and nobody was there to see it." * 3

    def logits(self, tokens):
        out = self.folder / "logits.npy"
        self.good("score", self.scout, "--tokens", ",".join(map(str, tokens)), "--logits", out)
        return harness.read_npy(out)

    def test_perplexity_is_what_the_logits_say(self):
        (self.folder / "text").write_text(self.TEXT)
        ids = [int(i) for i in self.good("tokenize", self.scout, self.TEXT).text.split()]
        for context in (0, 64, 7):
            said = self.good(
                "score", self.scout, "--text", self.folder / "text", "--context", context, "--json"
            ).json
            window = context or 1024
            nll, count = 0.0, 0
            for first in range(0, len(ids), window):
                piece = ids[first : first + window]
                for row, token in zip(self.logits(piece), piece[1:]):
                    top = max(row)
                    nll += top + math.log(sum(math.exp(x - top) for x in row)) - row[token]
                    count += 1
            self.assertEqual(said["tokens"], count)
            # The same float32 logits; only the order of a sum of 64 doubles may differ.
            self.assertAlmostEqual(said["nll"], nll, delta=1e-12 * nll)
            self.assertAlmostEqual(said["perplexity"], math.exp(nll / count), delta=1e-9)
        by_pipe = self.good(
            "score", self.scout, "--text", "-", "--context", 7, stdin=self.TEXT.encode()
        ).text
        self.assertIn(f"perplexity {math.exp(nll / count):.4f} over {count} tokens", by_pipe)

    def test_logits_are_those_of_the_reference(self):
        tokens = json.loads((GOLDENS / "scout" / "tokens.json").read_text())
        expected = harness.read_npy(GOLDENS / "scout" / "logits.npy")
        got = self.logits(tokens)
        self.assertEqual((len(got), len(got[0])), (len(expected), len(expected[0])))
        largest = max(abs(x) for row in expected for x in row)
        for row, other in zip(got, expected):
            for x, y in zip(row, other):
                self.assertLessEqual(abs(x - y), 1e-4 * largest)

    def test_texts_too_short_to_score_are_refused(self):
        for text in (b"", b"a"):
            self.bad(
                2,
                "expected at least two tokens, got",
                "score",
                self.scout,
                "--text",
                "-",
                stdin=text,
            )
        self.bad(
            2,
            "context: expected at least 2",
            "score",
            self.scout,
            "--text",
            "-",
            "--context",
            1,
            stdin=b"abc",
        )

    def test_a_binary_file_is_text_like_any_other(self):
        (self.folder / "binary").write_bytes(bytes(range(256)) * 8)
        self.good("score", self.scout, "--text", self.folder / "binary", "--json")

    def test_what_was_asked_must_be_whole(self):
        self.bad(2, "either --text FILE or --tokens LIST", "score", self.scout)
        self.bad(
            2,
            "either --text FILE or --tokens LIST",
            "score",
            self.scout,
            "--text",
            "x",
            "--tokens",
            "1",
        )
        self.bad(
            2, "--tokens LIST and --logits FILE together", "score", self.scout, "--tokens", "1"
        )
        out = self.folder / "x.npy"
        for tokens in ("1,x", "1.5", "1,,99999999999999", "1;2", "0x10"):
            self.bad(
                2,
                "expected numbers with commas between",
                "score",
                self.scout,
                "--tokens",
                tokens,
                "--logits",
                out,
            )
        self.bad(
            2, "expected at least one", "score", self.scout, "--tokens", " , ", "--logits", out
        )
        self.bad(
            2, "expected 0 to 63, got 64", "score", self.scout, "--tokens", "1,64", "--logits", out
        )
        self.bad(2, "expected 0 to 63, got -1", "score", self.scout, "--tokens=-1", "--logits", out)
        self.bad(
            1,
            "expected at most the context of 4 tokens, got 5",
            "score",
            self.scout,
            "--tokens",
            "1,2,3,4,5",
            "--logits",
            out,
            "--context",
            4,
        )
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_full_disk_leaves_no_part_of_the_logits(self):
        out = self.folder / "x.npy"
        self.bad(
            73,
            ["x.npy", "cannot write"],
            "score",
            self.scout,
            "--tokens",
            ",".join(["5"] * 200),
            "--logits",
            out,
            preexec_fn=lambda: small_files(10000),
        )
        self.assertEqual(list(self.folder.iterdir()), [])


def small_files(size):
    """In the child: no file may grow beyond this, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class Convert(CliTest):
    def test_every_type_makes_a_file_that_runs(self):
        sizes = {}
        for kind in TYPES:
            out = self.folder / f"{kind}.gguf"
            result = self.good("convert", GOLDENS / "bf16", out, "--type", kind)
            self.assertEqual(result.out, b"")
            # Rows of 32 are no block of a K-quant, nor of IQ4_XS.
            wide = kind.endswith("_k") or kind == "iq4_xs"
            self.assertEqual("no whole number" in result.err, wide, result.err)
            sizes[kind] = out.stat().st_size
            self.assertIn(kind if not wide else "q", self.good("inspect", out).text)
            self.good("score", out, "--tokens", "1,2,3", "--logits", self.folder / "x.npy")
        self.assertEqual(sizes["f32"], max(sizes.values()))
        self.assertLess(sizes["q8_0"], sizes["bf16"])
        self.assertLess(sizes["q4_0"], sizes["q8_0"])

    def test_the_tokenizer_and_the_makers_advice_go_along(self):
        out = self.folder / "m.gguf"
        self.good("convert", self.scout, out, "--type", "f32")
        for seed in range(
            5
        ):  # where it stops is advice too: the tokens 2 and 3, only one of which is known
            one, two = (
                self.good("run", path, "the ship", "--seed", seed, "-n", 40).out
                for path in (self.scout, out)
            )
            self.assertEqual(one, two)
        self.good("convert", self.endless, out, "--type", "f32", "--force")  # greedy
        one, two = (
            self.good("run", path, "the ship", "-n", 40).out for path in (self.endless, out)
        )
        self.assertEqual(one, two)

    def test_an_existing_file_is_kept_unless_forced(self):
        out = self.folder / "m.gguf"
        out.write_text("precious")
        self.bad(73, ["already exists", "--force"], "convert", self.scout, out)
        self.assertEqual(out.read_text(), "precious")
        self.good("convert", self.scout, out, "--force")
        self.good("inspect", out)

    def test_places_that_cannot_be_written_are_refused_before_any_work(self):
        self.bad(
            73,
            ["there is no folder", "make the folder first"],
            "convert",
            self.scout,
            self.folder / "no" / "m.gguf",
        )
        self.bad(73, "got a folder", "convert", self.scout, self.folder, "--force")
        if os.geteuid() != 0:
            self.folder.chmod(0o500)
            self.bad(77, "Permission denied", "convert", self.scout, self.folder / "m.gguf")
            self.folder.chmod(0o700)

    def test_a_full_disk_leaves_nothing_behind(self):
        self.bad(
            73,
            ["m.gguf", "cannot write"],
            "convert",
            self.scout,
            self.folder / "m.gguf",
            preexec_fn=lambda: small_files(20000),
        )
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_full_disk_keeps_the_file_that_was_there(self):
        out = self.folder / "m.gguf"
        out.write_text("precious")
        self.bad(
            73,
            "cannot write",
            "convert",
            self.scout,
            out,
            "--force",
            preexec_fn=lambda: small_files(20000),
        )
        self.assertEqual([p.name for p in self.folder.iterdir()], ["m.gguf"])
        self.assertEqual(out.read_text(), "precious")

    def test_unknown_types_are_refused_with_the_list(self):
        for command in ("convert", "quantize"):
            for kind in ("q4_k_x", "int8", "", "F99", "i8"):
                self.bad(
                    2,
                    ["expected f32, f16, bf16, q8_0", f"got {kind}"],
                    command,
                    self.scout,
                    self.folder / "m.gguf",
                    "--type",
                    kind,
                )

    def test_only_folders_are_converted(self):
        out = self.folder / "m.gguf"
        self.good("convert", self.scout, out)
        self.bad(2, "expected", "convert", out, self.folder / "n.gguf")


class Adapters(CliTest):
    def setUp(self):
        super().setUp()
        # The queries of the first layer, [32, 32]: all of them get the first input's value.
        self.adapter = harness.write_adapter(
            self.folder / "adapter",
            {
                "layers.0.self_attn.q_proj.lora_A": ([1, 32], [1.0] + [0.0] * 31),
                "layers.0.self_attn.q_proj.lora_B": ([32, 1], [1.0] * 32),
            },
            r=1,
            lora_alpha=2,
        )

    def logits(self, model, *flags):
        out = self.folder / "logits.npy"
        self.good("score", model, "--tokens", "1,5,9,20,33,7,8", "--logits", out, *flags)
        return [value for row in harness.read_npy(out) for value in row]

    def difference(self, a, b):
        return max(abs(x - y) for x, y in zip(a, b)) / max(map(abs, b))

    def test_one_beside_the_weights_is_one_merged(self):
        beside = self.logits(self.scout, "--lora", self.adapter)
        self.good("convert", self.scout, self.folder / "m.gguf", "--type", "f32", "--lora", self.adapter)
        # Float32 sums in another order; the model alone is far away.
        self.assertLess(self.difference(beside, self.logits(self.folder / "m.gguf")), 2e-5)
        self.assertGreater(self.difference(beside, self.logits(self.scout)), 1e-3)

    def test_every_command_that_computes_takes_one(self):
        for command in ("run", "chat", "serve", "batch", "score", "bench", "convert", "quantize"):
            self.assertIn("--lora", self.good(command, "--help").text, command)
        flags = ("-p", "4", "-n", "2", "-r", "1", "--lora", self.adapter)
        self.good("bench", self.scout, *flags)

    def test_what_does_not_fit_is_refused(self):
        self.bad(66, "adapter_config.json", "run", self.scout, "a", "--lora", self.folder / "no")
        other = harness.write_adapter(
            self.folder / "other",
            {
                "layers.0.self_attn.q_proj.lora_A": ([1, 31], [0.0] * 31),
                "layers.0.self_attn.q_proj.lora_B": ([32, 1], [0.0] * 32),
            },
        )
        self.bad(65, "expected factors of [32, 32]", "run", self.scout, "a", "--lora", other)


class Quantize(CliTest):
    def types(self, path):
        tensors = self.good("inspect", path, "--json", "--tensors").json["tensors"]
        return {t["name"]: t["type"] for t in tensors}

    def test_a_folder_or_a_file_becomes_a_file_in_the_type(self):
        wide, out = self.folder / "wide.gguf", self.folder / "m.gguf"
        said = self.good("quantize", self.scout, wide, "--type", "F32").text
        self.assertIn("32.00 bits per weight", said)
        self.assertEqual(set(self.types(wide).values()), {"f32"})
        self.good("quantize", wide, out, "--type", "q8_0")
        for name, kind in self.types(out).items():
            # The experts' down matrix is 16 wide: no block of 32.
            stays = "norm" in name or "ffn_gate_inp" in name or name == "rope_freqs.weight"
            expected = "f32" if stays else "f16" if "ffn_down" in name else "q8_0"
            self.assertEqual(kind, expected, name)
        self.good("run", out, "the ship", "-n", 3)

    def test_json_tells_what_was_written(self):
        out = self.folder / "m.gguf"
        said = self.good("quantize", self.scout, out, "--type", "q4_0", "--json").json
        facts = self.good("inspect", out, "--json", "--tensors").json
        kinds = [t["type"] for t in facts["tensors"]]
        self.assertEqual(
            {name: share["tensors"] for name, share in said["types"].items()},
            {kind: kinds.count(kind) for kind in set(kinds)},
        )
        self.assertEqual(said["type"], "q4_0")
        self.assertEqual(
            said["weight_bytes"], sum(share["bytes"] for share in said["types"].values())
        )
        self.assertGreater(said["source_weight_bytes"], said["weight_bytes"])
        self.assertEqual(len(said["warnings"]), 1)

    def test_tensors_can_have_types_of_their_own(self):
        out = self.folder / "m.gguf"
        for command in ("convert", "quantize"):
            self.good(
                command, self.scout, out, "--type", "q4_0", "--tensor", "*attn_?.*=q8_0",
                "--tensor", "blk.1.attn_v.weight=f16", "--pure", "--force",
            )  # fmt: skip
            types = self.types(out)
            self.assertEqual(types["blk.0.attn_v.weight"], "q8_0")
            self.assertEqual(types["blk.1.attn_v.weight"], "f16")
            self.assertEqual(types["blk.0.attn_output.weight"], "q4_0")
            self.assertEqual(types["output.weight"], "q4_0")

    def test_wrong_words_are_refused(self):
        out = self.folder / "m.gguf"
        for words, *arguments in (
            ("--type is required",),
            ("it matches none", "--type", "q4_0", "--tensor", "attn_v=q8_0"),
            ("expected PATTERN=TYPE", "--type", "q4_0", "--tensor", "q8_0"),
            ("expected a type of weights, got 'q4_k_m'", "--type", "q4_0", "--tensor", "*=q4_k_m"),
        ):
            self.bad(2, words, "quantize", self.scout, out, *arguments)
        self.bad(66, "found nothing", "quantize", self.folder / "no.gguf", out, "--type", "q4_0")
        self.bad(
            65, "GGUF", "quantize", self.scout / "config.json", out, "--type", "q4_0"
        )
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_an_existing_file_is_kept_unless_forced_and_may_be_the_source(self):
        out = self.folder / "m.gguf"
        self.good("quantize", self.scout, out, "--type", "bf16")
        before = out.read_bytes()
        self.bad(73, ["already exists", "--force"], "quantize", out, out, "--type", "q8_0")
        self.assertEqual(out.read_bytes(), before)
        self.good("quantize", out, out, "--type", "q8_0", "--force")
        self.assertEqual(self.types(out)["output.weight"], "q8_0")

    def test_a_full_disk_leaves_nothing_behind(self):
        self.bad(
            73,
            ["m.gguf", "cannot write"],
            "quantize",
            self.scout,
            self.folder / "m.gguf",
            "--type",
            "f32",
            preexec_fn=lambda: small_files(20000),
        )
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_importance_is_made_by_score_and_used_by_quantize(self):
        text, found, out = (self.folder / name for name in ("text", "importance", "m.gguf"))
        text.write_text("the ship came into the harbour at noon, and nobody saw it. " * 20)
        said = self.good("score", self.scout, "--text", text, "--importance", found, "--json").json
        self.assertEqual(said["importance"], str(found))
        plain = self.good("score", self.scout, "--text", text, "--json").json
        self.assertEqual(said["perplexity"], plain["perplexity"])
        arguments = ("quantize", self.scout, out, "--type", "q8_0", "--importance", found)
        self.good(*arguments)
        self.good("score", out, "--text", text)
        self.assertIn("quantize.imatrix.file", out.read_bytes().decode("latin-1"))
        self.bad(
            2, "another model", "quantize", self.llama, self.folder / "n.gguf", "--type", "q8_0",
            "--importance", found,
        )  # fmt: skip
        self.bad(
            1, "expected an importance matrix", *arguments[:-1], out, "--force"
        )

    def test_experts_that_saw_no_data_are_named(self):
        text, found = self.folder / "text", self.folder / "importance"
        text.write_text("a b")
        said = self.good("score", self.scout, "--text", text, "--importance", found)
        self.assertRegex(said.err, r"warning: blk\.0: experts [0-3, ]+ saw no data")
        again = self.good(
            "quantize", self.scout, self.folder / "m.gguf", "--type", "q8_0", "--importance", found
        )
        self.assertRegex(again.err, r"blk\.0: experts [0-3, ]+ saw no data.*without importance")

    def test_importance_wants_a_text(self):
        self.bad(
            2, "--text FILE with --importance", "score", self.scout, "--tokens", "1,2", "--logits",
            self.folder / "x.npy", "--importance", self.folder / "i",
        )  # fmt: skip
        self.bad(
            73, "there is no folder", "score", self.scout, "--text", self.scout / "config.json",
            "--importance", self.folder / "no" / "i",
        )  # fmt: skip
        self.assertEqual(list(self.folder.iterdir()), [])


class Stopping(CliTest):
    """Work long enough to stop: a model of some 64 MB, zeros but for its shape."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.large = pathlib.Path(cls._shared.name) / "large"
        cls.large.mkdir()
        config = {
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "max_position_embeddings": 1024,
        }
        (cls.large / "config.json").write_text(json.dumps(config))
        shapes = {
            "model.embed_tokens.weight": [64, 1024],
            "lm_head.weight": [64, 1024],
            "model.norm.weight": [1024],
        }
        for i in range(4):
            for name, shape in (
                ("self_attn.q_proj", [1024, 1024]),
                ("self_attn.k_proj", [1024, 1024]),
                ("self_attn.v_proj", [1024, 1024]),
                ("self_attn.o_proj", [1024, 1024]),
                ("mlp.gate_proj", [2048, 1024]),
                ("mlp.up_proj", [2048, 1024]),
                ("mlp.down_proj", [1024, 2048]),
                ("input_layernorm", [1024]),
                ("post_attention_layernorm", [1024]),
            ):
                shapes[f"model.layers.{i}.{name}.weight"] = shape
        header, at = {}, 0
        for name, shape in shapes.items():
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(cls.large / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)  # a hole of zeros

    def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(self):
        out = self.folder / "m.gguf"
        self.assertEqual(
            self.good("convert", self.large, out, "--type", "q4_k", "--threads", "1").err, ""
        )
        with Terminal(
            "convert", self.large, out, "--type", "q4_k", "--threads", "1", "--force"
        ) as terminal:
            terminal.expect(r"converting \[[#.]{30}\]")
            self.assertEqual(terminal.wait(), 0)
            self.assertTrue(terminal.rest.endswith("\r\x1b[K"), terminal.rest[-40:])
        with Terminal(
            "convert",
            self.large,
            out,
            "--type",
            "q4_k",
            "--threads",
            "1",
            "--force",
            env={"TERM": "dumb"},
        ) as terminal:
            self.assertEqual(terminal.wait(), 0)
            self.assertEqual(terminal.rest, "")

    def test_a_stopped_conversion_leaves_nothing_behind(self):
        for command, number, code in (
            ("convert", signal.SIGINT, 130),
            ("convert", signal.SIGTERM, 143),
            ("quantize", signal.SIGINT, 130),
        ):
            program = subprocess.Popen(
                [
                    harness.drover,
                    command,
                    self.large,
                    self.folder / "m.gguf",
                    "--type",
                    "q4_k",
                    "--threads",
                    "1",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=harness.CLEAN,
            )
            partial = self.folder / "m.gguf.partial"
            while not partial.exists() and program.poll() is None:
                pass
            program.send_signal(number)
            _, err = program.communicate(timeout=60)
            self.assertEqual(program.returncode, code, err)
            self.assertIn(b"stopped", err)
            self.assertEqual(list(self.folder.iterdir()), [])

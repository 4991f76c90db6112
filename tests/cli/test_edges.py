"""The edge of every subcommand: help, names of models, bad files, bad numbers, odd streams."""

import json
import os
import re
import shutil
import struct
import subprocess

import harness
from harness import CliTest, GOLDENS

COMMANDS = ("run", "chat", "inspect", "tokenize", "detokenize", "score", "convert", "quantize", "bench")


class Help(CliTest):
    def test_the_program_lists_its_subcommands(self):
        text = self.good("--help").text
        for command in COMMANDS:
            self.assertRegex(text, rf"\n\s+{command}\s+[A-Z]")
        self.assertRegex(self.good("--version").text, r"^\d+\.\d+\.\d+\n$")
        self.bad(
            2,
            "--help",
        )
        self.bad(2, ["nosuch: expected a subcommand", "drover --help"], "nosuch")
        self.bad(2, ["--model is required", "drover score --help"], "score")
        self.bad(2, ["expected a model, or pictures", "--image FILE"], "inspect")

    def test_every_subcommand_explains_every_flag(self):
        for command in COMMANDS:
            text = self.good(command, "--help").text
            self.assertNotIn("TEXT:", text, command)
            for flag in re.findall(r"^  (-\S+.*)$", text, re.M):
                self.assertRegex(flag, r"\s{2,}[A-Z0-9]|\S$", f"{command}: {flag}")
            self.assertLessEqual(max(map(len, text.splitlines())), 130, command)

    def test_sampling_flags_stand_together(self):
        for command in ("run", "chat"):
            text = self.good(command, "--help").text
            sampling = text[text.index("Sampling:") :]
            for flag in (
                "--temp",
                "--top-k",
                "--top-p",
                "--min-p",
                "--repeat-penalty",
                "--seed",
                "--max-tokens",
                "--stop",
            ):
                self.assertIn(flag, sampling)
            self.assertLess(text.index("--system"), text.index("Sampling:"))


class Models(CliTest):
    def each(self, code, words, path):
        """Every command that reads a model refuses it alike."""
        self.bad(code, words, "run", path, "hi")
        self.bad(code, words, "chat", path)
        self.bad(code, words, "inspect", path)
        self.bad(code, words, "score", path, "--text", "-", stdin=b"abc")

    def test_missing_files(self):
        self.each(
            66,
            [
                "no/such/file: expected a GGUF file, a Hugging Face folder, or a name in",
                "hint: check the spelling",
            ],
            "no/such/file",
        )
        self.bad(66, "no/such", "tokenize", "no/such", "x")
        self.bad(66, "no/such", "detokenize", "no/such", "1")
        self.bad(66, "no/such", "convert", "no/such", self.folder / "x.gguf")
        self.bad(66, "cannot open", "score", self.scout, "--text", self.folder / "none")
        self.bad(2, "expected a file, folder or name, got none", "inspect", "")

    def test_a_folder_without_a_config(self):
        self.each(
            66,
            [
                "expected a GGUF file or a folder with config.json and *.safetensors",
                "got a folder without config.json",
            ],
            self.folder,
        )

    def test_a_folder_without_weights(self):
        shutil.copy(GOLDENS / "scout" / "config.json", self.folder)
        self.each(
            66,
            "expected model.safetensors or model.safetensors.index.json, got neither",
            self.folder,
        )

    def test_an_unknown_architecture(self):
        model = harness.copy_golden("scout", self.folder / "m", model_type="mistral")
        self.each(
            1,
            ["model_type 'mistral': expected llama4, llama4_text or llama", "hint: Drover runs"],
            model,
        )
        gguf = self.gguf("llama")
        data = gguf.read_bytes()
        key = b"general.architecture" + struct.pack("<IQ", 8, 5)
        gguf.write_bytes(data.replace(key + b"llama", key + b"gemma", 1))
        self.each(1, ["architecture 'gemma': expected llama4 or llama", "hint: Drover runs"], gguf)

    def gguf(self, golden):
        out = self.folder / f"{golden}.gguf"
        self.good("convert", GOLDENS / golden, out, "--type", "f32")
        return out

    def test_an_unknown_tensor_type(self):
        gguf = self.gguf("llama")
        data = bytearray(gguf.read_bytes())
        name = b"blk.0.attn_q.weight"
        at = data.index(name) + len(name)
        (dimensions,) = struct.unpack_from("<I", data, at)
        struct.pack_into("<I", data, at + 4 + 8 * dimensions, 99)
        gguf.write_bytes(data)
        self.each(1, ["blk.0.attn_q.weight", "99"], gguf)
        model = harness.copy_golden("llama", self.folder / "m")
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"I32"', 1))
        for command in (["run", model, "hi"], ["chat", model], ["score", model, "--text", "-"]):
            self.bad(1, "expected a weight type, got i32", *command)

    def test_a_file_that_is_no_model(self):
        (self.folder / "text").write_text("This is no model.\n" * 100)
        self.each(65, ["text", "expected"], self.folder / "text")
        (self.folder / "empty").write_bytes(b"")
        self.each(65, ["empty", "expected"], self.folder / "empty")
        self.each(2, "expected a regular file", "/dev/null")

    def test_a_file_that_was_cut_short(self):
        gguf = self.gguf("llama")
        data = gguf.read_bytes()
        gguf.write_bytes(data[: len(data) // 2])
        self.each(65, ["llama.gguf", "expected"], gguf)
        model = harness.copy_golden("sharded", self.folder / "m")
        (model / "model-00002-of-00003.safetensors").unlink()
        self.each(66, "model-00002-of-00003.safetensors", model)

    def test_a_configuration_that_does_not_fit_the_weights(self):
        model = harness.copy_golden("scout", self.folder / "m", hidden_size=48)
        self.each(65, ["expected [64, 48], got [64, 32]"], model)

    def test_a_model_without_a_tokenizer_can_be_looked_at_and_not_talked_to(self):
        self.assertIn("none that can be used", self.good("inspect", GOLDENS / "scout").text)
        self.bad(1, "has no tokenizer.json and no tokenizer.model", "run", GOLDENS / "scout", "hi")
        self.bad(1, "has no tokenizer.json and no tokenizer.model", "chat", GOLDENS / "scout")

    def test_names_are_found_in_the_model_folder(self):
        self.good("convert", self.scout, self.folder / "tiny.gguf")
        os.symlink(self.llama, self.folder / "other")
        env = {"DROVER_MODELS": str(self.folder)}
        self.assertEqual(self.good("inspect", "tiny", "--json", env=env).json["name"], "scout")
        self.good("inspect", "tiny.gguf", env=env)
        self.good("inspect", "other", env=env)
        self.bad(66, str(self.folder), "inspect", "third", env=env)
        home = self.folder / "home" / ".local/share/drover"
        home.mkdir(parents=True)
        os.symlink(self.folder, home / "models")
        self.good("inspect", "tiny", env={"HOME": str(self.folder / "home")})
        self.good(
            "inspect", "tiny", env={"XDG_DATA_HOME": str(self.folder / "home" / ".local/share")}
        )

    def test_two_models_at_once_are_one_too_many(self):
        self.bad(2, "", "inspect", self.scout, "--model", self.llama)
        self.bad(2, "", "inspect", self.scout, self.llama)


class Values(CliTest):
    def test_numbers_out_of_range_are_refused_and_named(self):
        for flags, words in (
            (["--threads", "-1"], "threads: expected 0 to 1024, got -1"),
            (["--threads", "100000"], "threads: expected 0 to 1024, got 100000"),
            (["--threads", "two"], "--threads"),
            (["--context", "-5"], "context: expected 0 or more tokens, got -5"),
            (["--context", "1e3"], "--context"),
            (["--batch", "0"], "batch: expected at least 1 token, got 0"),
            (["--cache-type", "q4_0"], "cache type: expected f32, bf16 or int8, got q4_0"),
            (["--cache-type", "int"], "cache type: expected f32, bf16 or int8, got int"),
            (["--isa", "neon"], "isa: expected plain, avx2, avxvnni, avx512 or amx, got neon"),
            (["--temp", "-1"], "temperature: expected 0 or more, got -1"),
            (["--temp", "nan"], "temperature: expected 0 or more, got nan"),
            (["--temp", "inf"], "temperature: expected 0 or more, got inf"),
            (["--top-p", "nan"], "top_p: expected more than 0 and at most 1, got nan"),
            (["--top-p", "0"], "top_p"),
            (["--top-p", "1.5"], "top_p"),
            (["--top-k", "-3"], "top_k: expected 0 or more, got -3"),
            (["--min-p", "2"], "min_p: expected 0 to 1, got 2"),
            (["--repeat-penalty", "0"], "repeat_penalty: expected more than 0, got 0"),
            (["--repeat-last-n", "-2"], "repeat_last_n"),
            (["--presence-penalty", "inf"], "presence_penalty: expected a number, got inf"),
            (["--seed", "-1"], "--seed"),
            (["--seed", "18446744073709551616"], "--seed"),
            (["--max-tokens", "-7"], "max-tokens: expected -1 or more, got -7"),
            (["--chat-format", "alpaca"], 'expected llama4, llama3, chatml or none, got "alpaca"'),
            (["--nosuch"], "--nosuch"),
            (["one", "too", "many"], "too"),
        ):
            self.bad(2, words, "run", self.scout, "hi", *flags)
        self.bad(
            1,
            "expected at most the model's 1024 tokens, got 99999999999",
            "run",
            self.scout,
            "hi",
            "--context",
            "99999999999",
        )
        self.good("run", self.scout, "hi", "-n", 2, "--batch", 99999999999, "--top-k", 99999999999)

    def test_a_chat_format_that_the_vocabulary_lacks_is_refused(self):
        self.bad(
            1,
            "expected a control token <|header_start|>, got none",
            "run",
            self.scout,
            "hi",
            "--chat-format",
            "llama4",
        )

    def test_flags_beat_variables_and_variables_beat_defaults(self):
        env = {"DROVER_CONTEXT": "8"}
        ask = ["run", self.endless, "--raw", "-p", "hi", "--json"]
        self.assertEqual(self.good(*ask, env=env).json["finish_reason"], "context")
        self.assertEqual(
            self.good(*ask, "--context", 100, "-n", 50, env=env).json["finish_reason"], "length"
        )
        self.bad(2, "got 4096", *ask, env={"DROVER_THREADS": "4096"})
        self.bad(2, "batch", *ask, env={"DROVER_BATCH": "0"})
        self.bad(2, "cache type", *ask, env={"DROVER_CACHE_TYPE": "x"})
        self.bad(2, "isa", *ask, env={"DROVER_ISA": "x"})
        self.bad(2, "--threads = many", *ask, env={"DROVER_THREADS": "many"})

    def test_the_model_may_come_from_a_variable(self):
        env = {"DROVER_MODEL": str(self.scout)}
        self.good("inspect", env=env)
        self.good("run", "-p", "hi", "-n", 1, env=env)
        self.assertEqual(
            self.good("inspect", self.llama, "--json", env=env).json["config"]["architecture"],
            "llama",
        )


class Streams(CliTest):
    def shell(self, text, **more):
        return subprocess.run(
            ["bash", "-c", text, "bash", harness.drover, str(self.scout), str(self.folder)],
            capture_output=True,
            env=harness.CLEAN,
            timeout=60,
            **more,
        )

    def test_closed_output_is_an_error_and_no_file_takes_its_place(self):
        done = self.shell('"$1" run "$2" hi -n 3 >&-')
        self.assertEqual(done.returncode, 74)
        self.assertIn(b"standard output: cannot write", done.stderr)
        self.assertEqual(self.shell('"$1" inspect "$2" >&-').returncode, 74)
        # Nothing is printed, so nothing fails; and the file holds what it should.
        for streams in (">&-", "2>&-", "<&- >&- 2>&-"):
            self.assertEqual(
                self.shell(f'"$1" convert "$2" "$3/m.gguf" --force {streams}').returncode, 0
            )
            self.good("inspect", self.folder / "m.gguf")

    def test_closed_input_is_an_empty_one(self):
        done = self.shell('"$1" run "$2" <&-')
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(self.shell('"$1" chat "$2" <&-').returncode, 0)
        self.assertEqual(self.shell('"$1" run "$2" hi -n 3 <&-').returncode, 0)

    def test_closed_errors_do_not_change_the_exit_code(self):
        self.assertEqual(self.shell('"$1" inspect nosuch 2>&-').returncode, 66)

    def test_a_reader_that_has_enough_ends_it(self):
        done = self.shell('"$1" inspect "$2" --tensors | head -1; exit ${PIPESTATUS[0]}')
        self.assertIn(done.returncode, (0, 141))  # by who is faster
        self.assertEqual(done.stderr, b"")

    def test_no_colour_is_used_anywhere(self):
        with harness.Terminal("inspect", self.scout) as terminal:
            self.assertEqual(terminal.wait(), 0)
            self.assertNotIn("\x1b", terminal.rest)

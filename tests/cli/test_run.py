"""drover run: one question, one answer."""

import json
import os
import signal
import subprocess
import time
import unittest

import harness
from harness import CliTest, Terminal


class Run(CliTest):
    def test_an_argument_a_pipe_and_a_dash_are_the_same_question(self):
        flags = ["--seed", 5, "-n", 30]
        by_argument = self.good("run", self.scout, "where is the ship?", *flags)
        self.assertGreater(len(by_argument.out), 10)
        self.assertEqual(by_argument.err, "")
        for more in ([], ["-"], ["-p", "-"]):
            by_pipe = self.good("run", self.scout, *more, *flags, stdin=b"where is the ship?\n")
            self.assertEqual(by_pipe.out, by_argument.out)
        by_flag = self.good("run", "-m", self.scout, "-p", "where is the ship?", *flags)
        self.assertEqual(by_flag.out, by_argument.out)

    def test_json_holds_the_answer_and_how_it_came_about(self):
        answer = self.good(
            "run", self.scout, "hi", "--seed", 18446744073709551615, "-n", 12, "--json"
        ).json
        self.assertEqual(answer["seed"], 18446744073709551615)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertEqual(answer["answer_tokens"], 12)
        self.assertEqual(len(answer["tokens"]), 12)
        self.assertEqual(answer["model"], "scout")
        plain = self.good("run", self.scout, "hi", "--seed", 18446744073709551615, "-n", 12)
        self.assertEqual(plain.text, answer["text"] + "\n")
        control = [i for i in answer["tokens"] if 4 <= i < len(harness.TOKENS)]
        self.assertEqual(answer["text"], harness.token_bytes(control).decode("utf-8", "replace"))
        # <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
        self.assertEqual(answer["prompt_tokens"], 1 + 5 + 2 + 1 + 1 + 1 + 10)

    def test_the_seed_alone_decides(self):
        ask = ["run", self.scout, "tell me", "-n", 40, "--temp", 1.5, "--top-p", 1]
        one = self.good(*ask, "--seed", 1)
        self.assertEqual(
            self.good(*ask, "--seed", 1, "--threads", 3, "--batch", 2, "--isa", "plain").out,
            one.out,
        )
        self.assertNotEqual(self.good(*ask, "--seed", 2).out, one.out)
        self.assertNotEqual(self.good(*ask).out, self.good(*ask).out)
        # The seed that was drawn is told, and gives the answer again.
        drawn = self.good(*ask, "--json").json
        self.assertEqual(self.good(*ask, "--seed", drawn["seed"]).text, drawn["text"] + "\n")

    def test_system_text_and_raw_change_what_the_model_reads(self):
        ask = ["run", self.scout, "hi", "-n", 1, "--json"]
        plain = self.good(*ask).json["prompt_tokens"]
        system = self.good(*ask, "--system", "be kind").json["prompt_tokens"]
        self.assertEqual(system - plain, 1 + len("system\nbe kind") + 1 + 1)
        self.assertEqual(self.good(*ask, "--raw").json["prompt_tokens"], 2)
        self.bad(2, "no chat format", *ask, "--raw", "--system", "be kind")
        # The name of a control token in a text is text, unless somebody asks for it.
        raw = ["run", self.scout, "<|im_end|>", "--raw", "-n", 1, "--json"]
        self.assertEqual(self.good(*raw).json["prompt_tokens"], 10)
        self.assertEqual(self.good(*raw, "--special").json["prompt_tokens"], 1)

    def test_a_model_without_a_chat_format_continues_the_text(self):
        model = harness.copy_golden("llama", self.folder / "m", tokenizer=False)
        harness.write_tokenizer(model, ["<|a|>", "<|b|>", "<|c|>", "<|d|>"])
        (model / "tokenizer_config.json").unlink()
        answer = self.good("run", model, "abc", "-n", 1, "--json").json
        self.assertEqual(answer["prompt_tokens"], 3)
        self.bad(1, ["no chat format", "--raw"], "chat", model)

    def test_stop_strings_end_the_answer_before_them(self):
        ask = ["run", self.scout, "hi", "-n", 60, "--seed", 3]
        whole = self.good(*ask).text
        stop = whole[10:13]
        for more in (["--stop", stop], ["--stop", "not there at all", "--stop", stop]):
            self.assertEqual(self.good(*ask, *more).text, whole[: whole.index(stop)] + "\n")
        # A flag takes one string: what follows is the model.
        first = self.good("run", "--stop", stop, *ask[1:])
        self.assertEqual(first.text, whole[: whole.index(stop)] + "\n")

    def test_max_tokens_may_be_nothing(self):
        self.assertEqual(self.good("run", self.scout, "hi", "--max-tokens", 0).out, b"\n")
        self.bad(2, "expected -1 or more, got -2", "run", self.scout, "hi", "--max-tokens", "-2")

    def test_keys_and_values_are_cached_in_the_type_that_was_asked_for(self):
        ask = ["run", self.endless, "hi", "--raw", "-n", 20, "--json"]
        answers = {t: self.good(*ask, "--cache-type", t).json for t in ("f32", "bf16", "int8")}
        for answer in answers.values():
            self.assertEqual(answer["finish_reason"], "length")
        by_variable = self.good(*ask, env={"DROVER_CACHE_TYPE": "int8"}).json
        self.assertEqual(by_variable["text"], answers["int8"]["text"])

    def test_the_answer_ends_where_the_context_is_full(self):
        answer = self.good("run", self.endless, "hi", "--raw", "--context", 8, "--json").json
        self.assertEqual((answer["finish_reason"], answer["answer_tokens"]), ("context", 7))

    def test_prompts_longer_than_the_context_are_refused_with_both_numbers(self):
        self.bad(
            1,
            ["expected at most the context of 16 tokens, got 23", "--context"],
            "run",
            self.scout,
            "a" * 23,
            "--raw",
            "--context",
            16,
        )

    def test_contexts_longer_than_the_models_are_refused_with_both_numbers(self):
        self.bad(
            1,
            ["expected at most the model's 1024 tokens, got 2000", "hint: "],
            "run",
            self.scout,
            "hi",
            "--context",
            2000,
        )

    def test_there_must_be_a_question(self):
        self.bad(2, "prompt: expected a text, got an empty one", "run", self.scout, "", stdin=b"hi")
        self.bad(2, "on standard input, got an empty one", "run", self.scout)
        self.bad(2, "on standard input, got an empty one", "run", self.scout, "-", stdin=b"\n")
        with Terminal("run", self.scout) as terminal:
            self.assertEqual(terminal.wait(), 2)
            self.assertIn("drover chat", terminal.rest)

    def test_a_question_may_begin_with_a_dash(self):
        self.good("run", self.scout, "-n", 1, "--", "-5 + 3?")
        self.good("run", self.scout, "-n", 1, "--prompt=-5 + 3?")

    def test_bytes_that_are_no_text_are_read_as_they_are(self):
        answer = self.good(
            "run", self.scout, "--raw", "-n", 1, "--json", stdin=b"a\x00\xff\xc3\xa9b"
        ).json
        self.assertEqual(answer["prompt_tokens"], 4)  # the tokenizer has no token for 0 and 0xff

    def test_a_reader_that_leaves_early_ends_the_program_quietly(self):
        program = subprocess.Popen(
            [harness.drover, "run", self.endless, "hi", "--context", "1000000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=harness.CLEAN,
        )
        program.stdout.read(1)
        program.stdout.close()
        err = program.stderr.read()
        self.assertEqual(program.wait(60), -signal.SIGPIPE, err)
        self.assertEqual(err, b"")
        program.stderr.close()

    def test_a_full_disk_behind_the_answer_is_an_error(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [harness.drover, "run", self.scout, "hi", "-n", "5"],
                stdout=full,
                stderr=subprocess.PIPE,
                env=harness.CLEAN,
            )
        self.assertEqual(done.returncode, 74)
        self.assertIn(b"standard output: cannot write: No space left", done.stderr)

    def interrupted(self, *more):
        program = subprocess.Popen(
            [harness.drover, "run", self.endless, "hi", "--context", "1000000", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=harness.CLEAN,
        )
        return program

    def test_ctrl_c_keeps_what_was_said_and_exits_with_130(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            program = self.interrupted()
            first = program.stdout.read(10)
            program.send_signal(number)
            rest, err = program.communicate(timeout=60)
            self.assertEqual(program.returncode, code, err)
            self.assertEqual(len(first), 10)
            self.assertTrue(rest.endswith(b"\n"), rest[-50:])
            self.assertIn(b"stopped", err)

    def test_ctrl_c_with_json_gives_whole_json(self):
        program = self.interrupted("--json")
        time.sleep(1)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
        self.assertEqual(program.returncode, 130, err)
        answer = json.loads(out)
        self.assertEqual(answer["finish_reason"], "cancelled")
        self.assertGreater(answer["answer_tokens"], 0)

    def test_speed_is_told_on_a_terminal_unless_quiet(self):
        for flags, told in (([], True), (["--quiet"], False)):
            with Terminal("run", self.scout, "hi", "-n", 5, *flags) as terminal:
                self.assertEqual(terminal.wait(), 0)
                self.assertEqual("tokens/s" in terminal.rest, told, terminal.rest)

    @unittest.skipUnless(harness.SMOLLM2.exists(), "SmolLM2 is not in .cache/models")
    def test_a_real_model_knows_the_capital_of_france(self):
        answer = self.good(
            "run",
            harness.SMOLLM2,
            "What is the capital of France, and what is it known for?",
            "--temp",
            0,
            "-n",
            30,
        )
        self.assertIn("Paris", answer.text)

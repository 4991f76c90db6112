"""drover chat: through a pipe, and on a terminal as a person has it."""

import json
import os
import pathlib
import re
import signal
import stat
import subprocess

import harness
from harness import CliTest, Terminal


class ChatInAPipe(CliTest):
    def chat(self, lines, *more, model=None, **env):
        return self.good(
            "chat",
            model or self.scout,
            "-n",
            8,
            "--seed",
            4,
            *more,
            stdin="".join(line + "\n" for line in lines).encode(),
            env=env,
        )

    def test_every_line_is_a_question(self):
        two = self.chat(["hi", "", "   ", "and then?"])
        self.assertEqual(two.err, "")
        saved = self.folder / "saved.json"
        self.chat(["hi", "and then?", f"/save {saved}"])
        messages = json.loads(saved.read_text())["messages"]
        self.assertEqual([m["role"] for m in messages], ["user", "assistant"] * 2)
        self.assertEqual(
            [m["content"] for m in messages if m["role"] == "user"], ["hi", "and then?"]
        )
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        self.assertEqual(two.text, answers[0] + "\n" + answers[1] + "\n")

    def test_the_first_answer_is_that_of_run(self):
        one = self.good("run", self.scout, "hi", "-n", 8, "--seed", 4)
        self.assertEqual(self.chat(["hi"]).out, one.out)

    def test_blocks_hold_several_lines(self):
        saved = self.folder / "saved.json"
        self.chat(['"""one', "", '/two"""', '"""three"""', '"""', "four", '"""', f"/save {saved}"])
        questions = [
            m["content"] for m in json.loads(saved.read_text())["messages"] if m["role"] == "user"
        ]
        self.assertEqual(questions, ["one\n\n/two", "three", "\nfour\n"])

    def test_a_block_that_never_ends_is_asked_at_the_end_of_input(self):
        self.assertEqual(self.chat(['"""hi']).out, self.chat(["hi"]).out)

    def test_system_clear_save_and_load(self):
        saved = self.folder / "saved.json"
        out = self.chat(
            [
                "/system",
                "/system be kind",
                "/system",
                "hi",
                f"/save {saved}",
                "/clear",
                f"/load {saved}",
                f"/save {saved}.again",
            ]
        ).text
        self.assertIn("No system text.\nSet.\nbe kind\n", out)
        self.assertIn("Saved 3 messages.\nForgotten.\nLoaded 2 messages.\nSaved 3 messages.\n", out)
        self.assertEqual(saved.read_text(), pathlib.Path(f"{saved}.again").read_text())
        self.assertEqual(
            json.loads(saved.read_text())["messages"][0], {"role": "system", "content": "be kind"}
        )

    def test_a_loaded_conversation_goes_on_as_if_it_had_never_stopped(self):
        saved, one, two = (self.folder / name for name in ("saved", "one", "two"))
        flags = ["--temp", 0]
        self.chat(["hi", "there", f"/save {one}"], *flags)
        self.chat(["hi", f"/save {saved}"], *flags)
        self.chat([f"/load {saved}", "there", f"/save {two}"], *flags)
        self.assertEqual(one.read_text(), two.read_text())

    def test_exit_leaves_and_what_follows_is_not_read(self):
        for word in ("/exit", "/quit"):
            self.assertEqual(self.chat([word, "hi"]).out, b"")

    def test_slips_are_told_and_the_conversation_goes_on(self):
        for lines, words in (
            (["/nosuch"], "/nosuch: no such command; /help shows them"),
            (["/save"], "/save: expected a file name"),
            (["/load /no/such/file"], "/no/such/file: cannot open"),
            (["/load " + str(self.scout / "config.json")], 'expected {"messages": [...]}'),
            (["/save /no/such/folder/x"], "/no/such/folder/x"),
            (["a" * 2000], "expected at most the context of 1024 tokens"),
        ):
            result = self.chat([*lines, "/help"])
            self.assertIn(words, result.err)
            self.assertIn("/load FILE", result.text)

    def test_damaged_conversations_are_refused_whole(self):
        for text in (
            "",
            "[]",
            '{"messages": 3}',
            '{"messages": [{"role": "user"}]}',
            '{"messages": [3]}',
            '{"messages": [{"role": "user", "content": 3}]}',
            "[" * 100000,
            '{"messages": [' + "1," * 10,
        ):
            (self.folder / "bad.json").write_text(text)
            result = self.chat(
                ["hi", f"/load {self.folder}/bad.json", f"/save {self.folder}/kept.json"]
            )
            self.assertIn("bad.json: ", result.err)
            self.assertEqual(
                len(json.loads((self.folder / "kept.json").read_text())["messages"]), 2
            )

    def test_a_full_context_is_told(self):
        result = self.good("chat", self.endless, "--context", 64, "--seed", 1, stdin=b"hi\nhi\n")
        self.assertIn("/clear", result.err)

    def test_a_reader_that_is_gone_ends_the_conversation(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [harness.drover, "chat", self.scout, "-n", "3"],
                input=b"hi\n" * 1000,
                stdout=full,
                stderr=subprocess.PIPE,
                env=harness.CLEAN,
                timeout=60,
            )
        self.assertEqual(done.returncode, 74)
        self.assertEqual(done.stderr.count(b"cannot write"), 1)

    def test_no_history_is_kept_of_a_pipe(self):
        self.chat(["hi"], XDG_STATE_HOME=str(self.folder))
        self.assertEqual(list(self.folder.iterdir()), [])


class ChatOnATerminal(CliTest):
    def start(self, *more, model=None, **env):
        env = {"XDG_STATE_HOME": str(self.folder / "state"), **env}
        terminal = Terminal("chat", model or self.scout, "--seed", 4, *more, env=env)
        self.addCleanup(terminal.__exit__)
        terminal.ready()
        return terminal

    def test_questions_are_answered_and_speed_is_told(self):
        chat = self.start("-n", 8)
        expected = self.good("run", self.scout, "hi", "-n", 8, "--seed", 4).text
        chat.type("hi\r")
        out = chat.expect(r"tokens/s; \w+\]").replace("\r\n", "\n")
        self.assertIn(expected, out)
        chat.ready()
        chat.type("/exit\r")
        self.assertEqual(chat.wait(), 0)

    def test_help_names_every_command(self):
        chat = self.start()
        chat.type("/help\r")
        out = chat.expect("Ctrl-C")
        for command in ("/help", "/system", "/clear", "/save", "/load", "/exit", '"""'):
            self.assertIn(command, out)

    def test_ctrl_c_stops_the_answer_and_not_the_program(self):
        chat = self.start("--context", 1000000, model=self.endless)
        for _ in range(2):
            chat.type("hi\r")
            chat.expect("(?s)hi\r\n.{20}")
            chat.type("\x03")
            chat.expect(r"cancelled\]")
            chat.ready()
        chat.type(f"/save {self.folder}/saved.json\r")
        chat.expect("Saved 4 messages")
        chat.leave()
        self.assertEqual(chat.wait(), 0)

    def test_ctrl_c_while_typing_drops_the_line_and_not_the_program(self):
        chat = self.start("-n", 3)
        chat.type("not this")
        chat.expect("not this")
        chat.type("\x03")
        chat.ready(r"\^C\r\n> ")
        chat.type('"""nor\r')
        chat.ready(r"\. ")
        chat.type("this\x03")
        chat.ready()
        chat.type("but this\r")
        chat.expect(r"\]")
        chat.ready()
        chat.type(f"/save {self.folder}/saved.json\r")
        chat.expect("Saved 2 messages")
        saved = json.loads((self.folder / "saved.json").read_text())["messages"]
        self.assertEqual(saved[0]["content"], "but this")
        chat.type("/exit\r")
        self.assertEqual(chat.wait(), 0)

    def test_ctrl_d_leaves(self):
        chat = self.start()
        chat.type("\x04")
        self.assertEqual(chat.wait(), 0)

    def test_sigterm_ends_it_with_143_also_while_answering(self):
        chat = self.start("--context", 1000000, model=self.endless)
        chat.type("hi\r")
        chat.expect("(?s)hi\r\n.{20}")
        os.kill(chat.pid, signal.SIGTERM)
        self.assertEqual(chat.wait(), 143)

    def test_the_history_is_private_and_comes_back(self):
        chat = self.start("-n", 1)
        chat.type("/system remember me\r")
        chat.expect("Set.")
        chat.leave()
        self.assertEqual(chat.wait(), 0)
        history = self.folder / "state" / "drover" / "history"
        self.assertEqual(stat.S_IMODE(history.stat().st_mode), 0o600)
        chat = self.start("-n", 1)
        chat.type("\x1b[A")  # up
        chat.expect("/system remember me")
        chat.type("\r")
        chat.expect("Set.")
        chat.leave()
        self.assertEqual(chat.wait(), 0)

    def test_without_xdg_the_history_is_in_the_home_folder(self):
        chat = self.start("-n", 1, XDG_STATE_HOME="", HOME=str(self.folder))
        chat.type("/system x\r")
        chat.expect("Set.")
        chat.leave()
        self.assertEqual(chat.wait(), 0)
        self.assertTrue((self.folder / ".local/state/drover/history").exists())

    def test_a_history_that_cannot_be_kept_is_no_error(self):
        chat = self.start("-n", 1, XDG_STATE_HOME="/dev/null")
        chat.type("/exit\r")
        self.assertEqual(chat.wait(), 0)

    def test_letters_beyond_ascii_are_typed_with_and_without_a_locale(self):
        for env in ({}, {"LC_ALL": "C.UTF-8"}, {"LANG": "C"}):
            chat = self.start("-n", 1, **env)
            chat.type("/system caf\u00e9 \u732b\r")
            chat.expect("Set.")
            chat.ready()
            chat.type("/system\r")
            self.assertIn("caf\u00e9 \u732b", chat.expect("\n.*\n"))
            chat.leave()
            self.assertEqual(chat.wait(), 0)

    def test_lines_longer_than_the_terminal_are_whole(self):
        chat = self.start("-n", 1)
        line = "/system " + "x y " * 500 + "end"
        chat.type(line + "\r")
        chat.expect("Set.")
        chat.type(f"/save {self.folder}/saved.json\r")
        chat.expect("Saved 1 messages")
        saved = json.loads((self.folder / "saved.json").read_text())["messages"]
        self.assertEqual("/system " + saved[0]["content"], line)

    def test_into_a_file_it_writes_answers_alone(self):
        with open(self.folder / "out", "wb") as out:
            with Terminal("chat", self.scout, "-n", 8, "--seed", 4, stdout=out.fileno()) as chat:
                chat.type("hi\n\x04")
                self.assertEqual(chat.wait(), 0)
        expected = self.good("run", self.scout, "hi", "-n", 8, "--seed", 4).out
        self.assertEqual((self.folder / "out").read_bytes(), expected)

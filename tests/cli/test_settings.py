"""Settings from flags, variables and files; the manual; completion; the server under a service
manager."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import harness
from harness import CliTest


class Settings(CliTest):
    def file(self, text):
        path = self.folder / "settings.toml"
        path.write_text(text)
        return path

    def test_flags_beat_variables_which_beat_files_which_beat_defaults(self):
        ask = ["run", self.endless, "--raw", "-p", "hi", "--json", "--quiet"]

        def answer(*more, **env):
            return len(self.good(*ask, *more, env=env).json["tokens"])

        file = self.file("max-tokens = 5\n[chat]\nmax-tokens = 6\n[run]\nmax-tokens = 7\n")
        self.assertEqual(answer("--config", file), 7)
        self.assertEqual(answer(DROVER_CONFIG=str(file)), 7)
        self.assertEqual(answer("--config", file, DROVER_MAX_TOKENS="8"), 8)
        self.assertEqual(answer("--config", file, "-n", 9, DROVER_MAX_TOKENS="8"), 9)
        file = self.file("max-tokens = 5\n[chat]\nmax-tokens = 6\n")
        self.assertEqual(answer("--config", file), 5)

    def test_faults_of_a_file_name_it_and_the_line(self):
        where = ["run", self.scout, "hi", "--config"]
        self.bad(
            78,
            ["settings.toml:2: treads: expected", "perhaps threads"],
            *where,
            self.file("\ntreads = 1\n"),
        )
        self.bad(78, "settings.toml:2: threads", *where, self.file("[run]\nthreads = 'many'\n"))
        self.bad(78, "settings.toml:1: expected", *where, self.file("threads\n"))
        self.bad(78, ["got rum", "perhaps run"], *where, self.file("[rum]\n"))
        self.bad(66, "no-such-file", *where, self.folder / "no-such-file")
        # What only the command itself can judge.
        self.bad(
            2,
            ["threads: expected 0 to 1024, got 4096", "it comes from", "settings.toml:1: threads"],
            *where,
            self.file("threads = 4096\n"),
        )
        self.bad(
            2,
            ["threads: expected", "it comes from DROVER_THREADS"],
            *where[:-1],
            env={"DROVER_THREADS": "4096"},
        )

    def test_a_variable_of_another_command_does_no_harm(self):
        self.good(
            "run", self.scout, "-p", "hi", "-n", 1, env={"DROVER_LENGTHS": "x", "DROVER_DEPTH": "y"}
        )
        self.assertEqual(
            self.good("run", self.scout, "-n", 1, "--raw", env={"DROVER_PROMPT": "hi"}).code, 0
        )
        self.bad(2, "DROVER_PROMPT", "bench", self.scout, env={"DROVER_PROMPT": "hi"})

    def test_the_packaged_settings_with_every_comment_taken_as_said_are_understood(self):
        text = re.sub(r"(?m)^#(?! )", "", pathlib.Path("packaging/drover.toml").read_text())
        # All is read before the files that it names are looked for.
        self.bad(
            66, ["/etc/drover/"], "serve", "--config", self.file(text), env={"DROVER_PORT": "0"}
        )


class Manual(CliTest):
    def test_every_command_has_a_page(self):
        listed = re.findall(r"(?m)^  ([a-z]+)  ", self.good("--help").text)
        self.assertGreater(len(listed), 10)
        for command in listed:
            page = self.good("man", command).text
            self.assertIn(f".TH DROVER\\-{command.upper()} 1 ", page)
        self.assertIn(".TH DROVER 1 ", self.good("man").text)
        self.bad(2, ["expected a command, got nosuch"], "man", "nosuch")
        pages = self.folder / "pages"
        pages.mkdir()
        self.good("man", "--folder", pages)
        self.assertEqual(
            {one.name for one in pages.iterdir()},
            {"drover.1"} | {f"drover-{one}.1" for one in listed},
        )

    def test_the_day_of_a_page_is_that_of_the_sources_where_a_build_says_so(self):
        self.assertIn(
            " 1 2001-09-09 ", self.good("man", env={"SOURCE_DATE_EPOCH": "1000000000"}).text
        )

    def test_the_formatter_has_no_complaint(self):
        if not shutil.which("groff"):
            self.skipTest("groff is not installed")
        for command in ("", "serve", "convert", "needle"):
            page = self.good("man", *filter(None, [command])).out
            done = subprocess.run(
                ["groff", "-man", "-Tutf8", "-ww", "-z"], input=page, capture_output=True
            )
            self.assertEqual((done.returncode, done.stderr), (0, b""), command)


class Completion(CliTest):
    def complete(self, *words):
        """What bash offers for the last of the words."""
        script = self.good("completion", "bash").text
        quoted = " ".join(f"'{one}'" for one in words)
        script += f"\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _drover; printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        done = subprocess.run(
            ["bash", "-u"],
            input=script,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "DROVER_MODELS": str(self.folder / "models")},
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return set(done.stdout.split())

    def test_bash_offers_commands_flags_values_and_models(self):
        (self.folder / "models").mkdir()
        (self.folder / "models" / "scout.gguf").touch()
        (self.folder / "sea.txt").touch()
        self.assertEqual(self.complete("drover", "ser"), {"serve"})
        self.assertEqual(self.complete("drover", "--v"), {"--version"})
        self.assertIn("plan", self.complete("drover", ""))
        self.assertEqual(
            self.complete("drover", "serve", "--max-q"), {"--max-queue", "--max-queue-tokens"}
        )
        self.assertEqual(
            self.complete("drover", "--config", "f", "serve", "--tls-c"), {"--tls-cert"}
        )
        self.assertEqual(
            self.complete("drover", "serve", "--access-log", ""), {"text", "json", "off"}
        )
        self.assertEqual(self.complete("drover", "serve", "--access-log", "=", "j"), {"json"})
        self.assertEqual(
            self.complete("drover", "serve", "--access-log", "="), {"text", "json", "off"}
        )
        self.assertEqual(self.complete("drover", "serve", "s"), {"scout", "sea.txt"})
        self.assertEqual(self.complete("drover", "score", "m", "--text", "s"), {"sea.txt"})
        self.assertEqual(self.complete("drover", "serve", "--port", ""), set())
        self.bad(2, "", "completion", "tcsh")


class Service(CliTest):
    """The server as a service manager has it."""

    def start(self, *arguments):
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(str(self.folder / "notify"))
        self.manager.settimeout(60)
        self.process = subprocess.Popen(
            [harness.drover, "serve", "--port", "0", *map(str, arguments)],
            env={**harness.CLEAN, "NOTIFY_SOCKET": str(self.folder / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.process.stderr.close)
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)
        return re.search(r"http://\S+", self.process.stderr.readline()).group()

    def heard(self):
        return dict(one.split("=", 1) for one in self.manager.recv(1000).decode().splitlines())

    def health(self, address):
        try:
            with urllib.request.urlopen(address + "/health", timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        said = self.heard()
        self.assertEqual(said["STOPPING"], "1")
        self.assertEqual(self.process.wait(timeout=60), 0)
        return said

    def test_is_told_of_loading_readiness_and_the_end(self):
        address = self.start(self.scout, "--drain-seconds", 7)
        self.assertEqual(self.heard(), {"STATUS": "Loading the model"})
        self.assertEqual(self.heard()["READY"], "1")
        self.assertEqual(self.health(address)[0], 200)
        self.assertEqual(self.end()["EXTEND_TIMEOUT_USEC"], "17000000")

    def test_without_a_model_is_ready_and_says_what_is_missing(self):
        address = self.start("--without-model")
        said = self.heard()
        self.assertEqual(said["READY"], "1")
        self.assertIn("No model is configured", said["STATUS"])
        status, body = self.health(address)
        self.assertEqual(status, 503)
        self.assertIn(b"no model is configured", body)
        self.end()

    def test_without_a_model_and_not_told_to_wait_ends(self):
        self.bad(2, ["--model is required", "--without-model"], "serve", "--port", "0")

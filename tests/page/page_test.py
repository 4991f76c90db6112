"""The web page of `drover serve` in headless Chromium.

    python page_test.py DROVER [unittest arguments]

The real server has a tiny model with eyes and random weights, whose answers are nonsense and always the
same; what the page makes of answers of any other kind is seen with a scripted server.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import browser
import servers

if __name__ == "__main__":
    drover = sys.argv.pop(1)
    if not os.access(browser.CHROMIUM, os.X_OK):
        print("skipped: chromium is not installed; script/check-page installs it")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "tiny.gguf"
        subprocess.run(
            [drover, "bench", "--make", "tiny-vision", model, "--type", "f32"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        servers.start = lambda *flags: servers.Drover(drover, model, "--alias", "tiny", *flags)
        import test_chat, test_look, test_markdown, test_trouble  # when servers can be started

        names = sys.argv[1:]
        loader = unittest.TestLoader()
        modules = (test_chat, test_look, test_trouble, test_markdown)
        if names:
            suite = unittest.TestSuite(
                loader.loadTestsFromName(name, module)
                for module in modules
                for name in names
                if hasattr(module, name.split(".")[0])
            )
        else:
            suite = unittest.TestSuite(loader.loadTestsFromModule(module) for module in modules)
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        browser.close()
    sys.exit(not result.wasSuccessful())

#!/usr/bin/env python3
"""Drives the built program from outside: cli_test.py BINARY [TEST ...], or the binary in $DROVER.
Python's standard library is all it needs. Runs in the root of the source tree."""

import os
import pathlib
import sys
import unittest

sys.dont_write_bytecode = True  # the source tree stays as it is
import harness

if __name__ == "__main__":
    arguments = sys.argv[1:]
    binary = arguments.pop(0) if arguments else harness.drover
    if not binary or not os.access(binary, os.X_OK):
        sys.exit(f"expected the path of the program, got {binary!r}")
    harness.drover = str(pathlib.Path(binary).resolve())
    import test_batch, test_bench, test_chat, test_edges, test_files, test_memory  # after the program
    import test_needle, test_pictures, test_plan, test_run, test_settings, test_train  # is known

    loader = unittest.TestLoader()
    modules = (test_run, test_chat, test_batch, test_memory, test_pictures, test_files, test_bench)
    modules += (test_plan, test_needle, test_edges, test_settings, test_train)
    if arguments:
        suite = unittest.TestSuite(
            loader.loadTestsFromName(name, module)
            for module in modules
            for name in arguments
            if hasattr(module, name.split(".")[0])
        )
    else:
        suite = unittest.TestSuite(loader.loadTestsFromModule(module) for module in modules)
    result = unittest.TextTestRunner(verbosity=2 if arguments else 1).run(suite)
    for test, reason in result.skipped:
        print(f"skipped: {test}: {reason}")
    sys.exit(not result.wasSuccessful())

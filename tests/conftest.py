"""One thread a test process: small products are slower on many, and the tests run in several processes."""

import copy
import os
import random
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

# A shell's background job ignores Ctrl-C, and so would every test of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """What a test draws, its fixtures included, is the same whichever tests ran before it in this process: from the
    global generators, and from the ``RNG`` of its module.
    """
    torch.default_generator.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # what others draw from
    random.seed(0)
    if (rng := getattr(getattr(item, "module", None), "RNG", None)) is not None:
        rng.bit_generator.state = item.module.__dict__.setdefault("_start", copy.deepcopy(rng.bit_generator.state))


@pytest.fixture
def run(capsys):
    """Run a command line in this process: (exit code, standard output, standard error)."""
    from normscope.cli import main

    def run(*args):
        if any(str(a).startswith("transformers:") for a in args):
            with capsys.disabled():  # the logger of the package keeps the stream that it finds when it is imported
                import transformers  # noqa: F401
        try:
            main([str(a) for a in args])
        except SystemExit as stop:
            code = stop.code
        else:
            code = 0
        out = capsys.readouterr()
        return int(code or 0), out.out, out.err

    return run

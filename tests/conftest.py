"""One thread a test process: small products are slower on many, and the tests run in several processes."""

import copy
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# A shell's background job ignores Ctrl-C, and so would every test of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def draws(request):
    """A test's draws from its module's ``RNG`` are the same whichever tests ran before it in this process."""
    if (rng := getattr(request.module, "RNG", None)) is not None:
        start = copy.deepcopy(rng.bit_generator.state)
        yield
        rng.bit_generator.state = start
    else:
        yield


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

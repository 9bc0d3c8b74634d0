"""One thread a test process: small products are slower on many, and the tests run in several processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

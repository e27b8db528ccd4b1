"""The suites, and the harness they use."""

import os

import jt_impl  # noqa: F401 - a later ``import jittor`` is the prepared one, also where nobody calls ``load``

# PyTorch and Jittor each keep a pool of OpenMP threads, and an idle pool spins on the cores that the other one needs:
# four training steps of N on two cores took 146 s so and 46 s with threads that sleep. Read when OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

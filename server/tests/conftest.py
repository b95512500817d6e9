"""Triton's kernels run in its interpreter in these tests, which need no GPU."""

import os

# Read when Triton is imported, which transformers does as well: so before any test is.
os.environ["TRITON_INTERPRET"] = "1"

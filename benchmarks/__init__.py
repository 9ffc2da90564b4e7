"""What vqfast is measured by: ``python -m benchmarks``; see README.md beside this file."""

import os

# torch, faiss and scikit-learn bring an OpenMP each: idle threads of one mustn't spin while another is timed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

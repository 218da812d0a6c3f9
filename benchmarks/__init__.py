"""Each benchmark prints ratios against a peer or a limit measured in the same run."""

import os

# as the services do (services/cli.py); torch reads it when it is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

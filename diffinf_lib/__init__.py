"""diffinf: influence functions for diffusion models. Everything public is here: `import diffinf_lib as di`.

Names are listed in `__init__.pyi`, for people, type checkers and the loader alike; what is not used is not imported.
"""

import os

import lazy_loader

# No library reports usage unasked.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Threads that wait by spinning slow each other down a hundredfold on a busy machine; heeded if torch is not loaded yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

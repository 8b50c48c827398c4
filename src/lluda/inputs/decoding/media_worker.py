"""The script of the child process that decodes media.

Standard input is a socket; `media_jobs.py` says what goes over it.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path


def main() -> None:
    """Decode what is asked for until the other end closes."""
    root = str(Path(__file__).resolve().parents[3])
    if root not in sys.path:
        sys.path.insert(0, root)
    from lluda.inputs.decoding.media_jobs import serve

    serve(socket.socket(fileno=0))


if __name__ == "__main__":
    main()

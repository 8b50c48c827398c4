"""`python -m tests.fuzz --minutes M [READER …]`: readers in turn under atheris (libFuzzer, guided by the coverage of
lluda's own code), each in a process of its own for its share of the time. Exit code 1 if one ended with an input that
it neither reads nor refuses, or took too long or too much memory for; the input lies in .venv/fuzz/READER/crashes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(".venv/fuzz")
SECONDS_AN_INPUT, MEGABYTES, LONGEST = 20, 4096, 1 << 16


def main() -> int:
    """All readers, or one in this process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all readers together")
    parser.add_argument("--one", metavar="SECONDS", type=int, help="run the one reader named here for so long")
    parser.add_argument("readers", nargs="*")
    args = parser.parse_args()
    if args.one is not None:
        hunt(args.readers[0], args.one)
    names = args.readers or all_names()
    seconds = max(1, round(60 * args.minutes / len(names)))
    failed = [name for name in names if not hunted(name, seconds)]
    print(f"== {len(names)} readers, {seconds} s each; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def all_names() -> list[str]:
    """In the order of the table."""
    from tests.fuzz.readers import READERS

    return list(READERS)


def hunted(name: str, seconds: int) -> bool:
    """Whether the reader stood so many seconds of inputs."""
    print(f"== {name}", flush=True)
    return (
        subprocess.run([sys.executable, "-m", "tests.fuzz", "--one", str(seconds), name], check=False).returncode == 0
    )


def hunt(name: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["lluda"]):
        from tests.fuzz.readers import READERS
    reader = READERS[name]
    corpus, crashes = CORPUS / name / "corpus", CORPUS / name / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    place = Path(tempfile.mkdtemp(prefix="lluda-fuzz-"))
    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS_AN_INPUT}", f"-rss_limit_mb={MEGABYTES}"]
    options = [*limits, f"-max_len={LONGEST}", f"-artifact_prefix={crashes}/", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda content: reader.feed(content, place))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

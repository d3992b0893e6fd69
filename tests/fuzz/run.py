"""Coverage-guided fuzzing of one target, by atheris: `python tests/fuzz/run.py TARGET [flags of libFuzzer]`.

The corpus grows in out/fuzz/TARGET; an input that finds a bug is written to the working folder and named at the end.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["unlearn_serve.format", "unlearn_serve.store.channel_entry"]):
    from fuzz import targets


def main() -> None:
    name, *flags = sys.argv[1:]
    corpus = Path("out") / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *flags], lambda data: targets.check(name, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

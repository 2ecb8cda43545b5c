"""Write a small random Chatterbox checkpoint in the real file layout, for a dry run without the gigabytes.

    python -m perf.tiny_checkpoint --engine chatterbox-turbo FOLDER
    launch pipeline.yaml --set model.engine=chatterbox-turbo --set model.weights=FOLDER --say "Hello."

It babbles: nothing in it was trained. The same seed writes the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.engines.base import EngineConfig
from pipeline.engines.chatterbox import missing
from pipeline.engines.chatterbox.options import Options, variant_of
from pipeline.engines.chatterbox.variants import VARIANTS

ENGINES = tuple(dict.fromkeys(variant.name for variant in VARIANTS))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    about, _, use = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "perf.tiny_checkpoint", description=about, epilog=use, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the files go; made where it does not exist")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="whose files")
    parser.add_argument("--version", choices=("v2", "v3"), default="v2", help="of the multilingual model")
    parser.add_argument("--nano", action="store_true", help="Turbo's smaller sibling")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another model")
    given = parser.parse_args(argv)
    if why := missing(given.engine, EngineConfig(device="cpu")):
        print(f"perf.tiny_checkpoint: {why}", file=sys.stderr)
        return 2
    from pipeline.engines.chatterbox.tiny_files import write_checkpoint

    variant = variant_of(given.engine, Options(version=given.version, nano=given.nano), "hub")
    try:
        write_checkpoint(variant, given.folder, given.seed)
    except OSError as error:
        print(f"perf.tiny_checkpoint: {given.folder} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    for path in sorted(given.folder.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

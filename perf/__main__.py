"""What can be measured, one line each: ``python -m perf``."""

from __future__ import annotations

import ast
from pathlib import Path

NOT_SCRIPTS = {
    "__init__", "__main__", "bottleneck", "card", "chat_server", "chunks", "common", "compare_views", "comparing",
    "direct", "hops", "joins", "listening", "live", "page", "running", "slopes", "soak_programs", "sweeping", "texts",
    "trace", "trials", "trials_pipeline", "turns", "ways", "window",
    "chatterbox_generate", "chatterbox_models", "chatterbox_ours", "chatterbox_stock",
    "gpu_parts", "gpu_pipeline", "gpu_profile", "gpu_s3gen", "gpu_t3", "gpu_telling",
}  # fmt: skip
WIDTH = 16


def scripts() -> dict[str, str]:
    """Every script here and the first line of what it says of itself."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in NOT_SCRIPTS:
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.partition("\n")[0]
    return found


def main() -> None:
    """Print the list."""
    print("python -m perf.<name> [--help] [--json FILE]\n")
    for name, doc in scripts().items():
        print(f"  {name:<{WIDTH}}{doc}")


if __name__ == "__main__":
    main()

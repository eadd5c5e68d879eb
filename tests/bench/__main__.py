"""`python -m tests.bench NAME [--quick] [--json]`: exit status 0 when every figure is within its limit, else 1."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import attrs

from tests.bench import Figure


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=names(), help="which benchmark; without it, the list")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: ends within 45 s")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name in names():
            about = (importlib.import_module(f"tests.bench.{name}").__doc__ or "").partition("\n")[0]
            print(f"{name:<14} {about}")
        return 0
    figures: list[Figure] = importlib.import_module(f"tests.bench.{arguments.name}").run(arguments.quick)
    over = [figure for figure in figures if not figure.holds]
    if arguments.json:
        rows = [{**attrs.asdict(figure), "holds": figure.holds} for figure in figures]
        print(json.dumps({"benchmark": arguments.name, "holds": not over, "figures": rows}))
    else:
        print(*figures, sep="\n")
    verdict = (
        "holds" if not over else "falls short: " + ", ".join(f"{f.name} {f.value:.3g} > {f.limit:g}" for f in over)
    )
    print(f"{arguments.name}: {verdict}", file=sys.stderr if arguments.json else sys.stdout)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

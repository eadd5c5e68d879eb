"""Files as the command line takes them."""

from __future__ import annotations

from pathlib import Path

import click

FILE: click.Path = click.Path(path_type=Path, readable=False)
"""Whether it can be used is said by whoever uses it, with a reason, a hint and a status of its own."""

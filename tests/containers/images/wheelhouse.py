"""Wheels made by hand, and a folder of them that pip takes for an index: no test needs the network for these."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


class Wheelhouse:
    """A folder of wheels; `requirements` writes a file that names what is wanted of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def wheel(
        self,
        name: str,
        version: str = "1.0",
        *,
        tag: str = "py3-none-any",
        files: Mapping[str, str] | None = None,
        requires: Sequence[str] = (),
        scripts: Mapping[str, str] | None = None,
    ) -> Path:
        facts = f"{name}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
        content = {f"{name}/__init__.py": f"VERSION = {version!r}\n"} if files is None else dict(files)
        content[f"{facts}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        content[f"{facts}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
        if scripts:
            lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
            content[f"{facts}/entry_points.txt"] = f"[console_scripts]\n{lines}"
        content[f"{facts}/RECORD"] = "".join(f"{place},,\n" for place in [*content, f"{facts}/RECORD"])
        path = self.folder / f"{name}-{version}-{tag}.whl"
        with zipfile.ZipFile(path, "w") as file:
            for place, text in content.items():
                file.writestr(place, text)
        return path

    def source(self, name: str, version: str = "1.0") -> Path:
        """What would have to be built."""
        path = self.folder / f"{name}-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for place, text in (("setup.py", "raise SystemExit('it was run')"), ("PKG-INFO", f"Name: {name}\n")):
                entry = tarfile.TarInfo(f"{name}-{version}/{place}")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        return path

    def requirements(self, *lines: str) -> Path:
        path = self.folder / f"requirements-{abs(hash(lines))}.txt"
        path.write_text("".join(f"{line}\n" for line in ("--no-index", f"--find-links {self.folder}", *lines)))
        return path

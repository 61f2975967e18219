"""Native libraries as the installed files tell of them; nothing is imported. Light."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from .facts import Packages

BNB_LIBRARY = re.compile(r"libbitsandbytes_cuda(\d\d)(\d+)\.so$")


def read_packages() -> Packages:
    """What torch was built for and what bitsandbytes brings."""
    return Packages(
        torch_cuda=_torch_cuda(),
        bitsandbytes_cuda=bitsandbytes_cuda(package_folder("bitsandbytes")),
        bitsandbytes_override=os.environ.get("BNB_CUDA_VERSION"),
    )


def package_folder(name: str) -> Path | None:
    """Where an installed package lies; None for one that is not there."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def bitsandbytes_cuda(folder: Path | None) -> list[str]:
    """CUDA versions, such as 13.0, that libraries in ``folder`` are for; ascending."""
    files = sorted(folder.iterdir()) if folder is not None else []
    found = [match for file in files if (match := BNB_LIBRARY.match(file.name))]
    return sorted((f"{match[1]}.{match[2]}" for match in found), key=_version)


def wanted_bitsandbytes(packages: Packages) -> str | None:
    """The CUDA version whose library bitsandbytes will load; None when it has none for this torch.

    Its own rule: BNB_CUDA_VERSION as it stands; else the exact version, the highest lower one of the same
    major version, the lowest higher one.
    """
    if packages.bitsandbytes_override is not None:
        digits = packages.bitsandbytes_override
        named = f"{digits[:2]}.{digits[2:]}"
        return named if named in packages.bitsandbytes_cuda else None
    if packages.torch_cuda is None:
        return None
    here = _version(packages.torch_cuda)
    same = [one for one in packages.bitsandbytes_cuda if _version(one)[0] == here[0]]
    lower = [one for one in same if _version(one) <= here]
    return lower[-1] if lower else same[0] if same else None


def library_name(cuda: str | None) -> str:
    """The file bitsandbytes loads for a CUDA version, or for the CPU."""
    return f"libbitsandbytes_{'cpu' if cuda is None else 'cuda' + cuda.replace('.', '')}.so"


def _torch_cuda() -> str | None:
    folder = package_folder("torch")
    file = None if folder is None else folder / "version.py"
    if file is None or not file.is_file():
        return None
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", file.read_text(encoding="utf-8"), re.M)
    return None if found is None else found[1]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))

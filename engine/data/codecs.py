"""The codec that turns a row's sound into codes, in a process of its own: codecs are torch models. Light.

Rows that hold codes already need none.
"""

from __future__ import annotations

import base64
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import WhetError
from ..models.locate import resolve_model
from ..processes import send, start
from ..recipe import TTSSection
from .spoken import Codes

MODULE = "whet.engine.methods.tts.codec_process"
TAIL = 400


def codec_arguments(section: TTSSection, layout: str, folder: Path) -> tuple[str, str]:
    """Which codec, and where it is.

    Args:
        section: the recipe's.
        layout: of the model, see :func:`.voices.layout_of`.
        folder: of the model that learns to speak.

    Raises:
        WhetError: ``tts.codec`` with what to install or name; ``model.*`` for a codec that is not there.
    """
    if layout == "csm":
        named = section.codec is not None
        return "mimi", str(resolve_model(str(section.codec), weights=True) if named else folder)
    if layout == "spark":
        raise WhetError(
            "tts.codec",
            "The rows hold sound, and Spark-TTS's codec, BiCodec, is no package that can be installed.",
            "Make codes with github.com/SparkAudio/Spark-TTS, and give rows codes and global_codes.",
        )
    if find_spec("snac") is None:
        raise WhetError(
            "tts.codec",
            "The rows hold sound, and Orpheus' codec, SNAC, is not installed.",
            "pip install 'whet[tts]', or give rows with codes.",
        )
    if section.codec is None:
        raise WhetError(
            "tts.codec",
            "The rows hold sound, and no codec is named that makes codes of it.",
            "Set method.codec, e.g. method.codec=hubertsiuzdak/snac_24khz, or give rows with codes.",
        )
    return "snac", section.codec


class Codec:
    """A codec at work; close it, or use it as a context.

    Raises:
        WhetError: ``tts.codec`` when it does not load, or is gone.
    """

    def __init__(self, kind: str, place: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._process = start(MODULE, kind, place, stderr=self._log)
        self.rate = int(self._answer()["rate"])
        """Samples a second that it hears."""

    def encode(self, samples: bytes) -> Codes:
        """Codes of a sound: ``codes[codebook][place]``.

        Args:
            samples: 16 bits each, as :func:`.audio.read_audio` gives them at ``rate``.
        """
        send(self._process, {"samples": base64.b64encode(samples).decode()})
        codes: Codes = self._answer()["codes"]
        return codes

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Codec:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()[-TAIL:]
        raise WhetError(
            "tts.codec",
            f"The codec ended with code {code}: {said.splitlines()[-1] if said else 'it said nothing'}",
            "Check that method.codec names a codec of this kind, downloaded whole.",
        )

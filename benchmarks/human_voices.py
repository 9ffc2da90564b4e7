"""Makes the human voices of the suite ``speech``: recordings in five languages, the English ones with phones.

``python -m benchmarks.human_voices FOLDER TEXTS`` needs Debian's packages ``asterisk-core-sounds-en-wav``,
``-es-wav``, ``-fr-wav``, ``-it-wav`` and ``-ru-wav``, the package pocketsphinx, and the texts of the English
recordings: ``core-sounds-en.txt``, which Asterisk's own archive of these sounds holds (lines ``name: text``).
Each language has one voice, so that voice and language are confounded.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

SOUNDS = Path("/usr/share/asterisk/sounds")
ENGLISH = "en_US_f_Allison"
RECORDINGS = 150  # of each voice, at most
SECONDS = (0.8, 8.0)
RATE, FRAME = 16_000, 0.01  # of pocketsphinx: samples a second, seconds


def main(folder: Path, texts: Path) -> None:
    """Makes the voices: links to the recordings, and label files beside the English ones."""
    from pocketsphinx import Decoder

    decoder = Decoder(lm=None, loglevel="FATAL")
    lines = (line.split(":", 1) for line in texts.read_text(encoding="utf-8").splitlines() if ":" in line)
    said = {name.strip().removesuffix(".wav"): text for name, text in lines}
    for voice in sorted(path for path in SOUNDS.iterdir() if not path.is_symlink()):  # en is a link
        made = 0
        for file in sorted(voice.rglob("*.wav")):
            wave, rate = soundfile.read(file)
            if made == RECORDINGS or not SECONDS[0] <= len(wave) / rate <= SECONDS[1]:
                continue
            target = folder / voice.name / "-".join(file.relative_to(voice).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            if voice.name == ENGLISH:
                phones = aligned(
                    decoder, wave, rate, said.get(str(file.relative_to(voice).with_suffix("")), "")
                )
                if not phones:
                    continue
                target.with_suffix(".lab").write_text(phones)
            if not target.exists():
                target.symlink_to(file)
            made += 1
        print(f"{voice.name}: {made} recordings")


def aligned(decoder: Any, wave: np.ndarray, rate: int, text: str) -> str:
    """The lines of a label file, in seconds; none where the text has a word that the decoder doesn't know."""
    words = re.findall(r"[a-z']+", text.lower())
    if not words or re.search(r"[0-9\[(<*#]", text) or not all(map(decoder.lookup_word, words)):
        return ""
    samples = (soxr.resample(wave, rate, RATE).clip(-1, 1) * 32767).astype("<i2").tobytes()
    decoder.set_align_text(" ".join(words))
    try:
        for second in (False, True):
            if second:
                decoder.set_alignment()
            decoder.start_utt()
            decoder.process_raw(samples, full_utt=True)
            decoder.end_utt()
        phones = list(decoder.get_alignment().phones())
    except RuntimeError:  # the text doesn't fit the recording
        return ""
    found = [(p.start * FRAME, (p.start + p.duration) * FRAME, p.name) for p in phones]
    return "".join(f"{start:.2f} {end:.2f} {name}\n" for start, end, name in found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

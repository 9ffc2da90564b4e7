"""Makes the voices of the suite ``speech``: four Czech diphone voices, with the times of all phones.

``python -m benchmarks.czech_voices FOLDER`` needs Debian's packages ``festival`` and ``festvox-czech-dita``,
``-krb``, ``-machac`` and ``-ph``. Each voice reads sentences of its own: random words of ``czech_words.txt``.
What stands in the folder already isn't made again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

VOICES = ("dita", "krb", "machac", "ph")
SENTENCES = 100  # of each voice: some seven minutes
LENGTHS = (4, 8)  # words of a sentence
ENCODING = "iso8859-2"  # of festival's Czech text
WORDS = Path(__file__).with_name("czech_words.txt")


def main(folder: Path) -> None:
    """Makes the voices."""
    words = WORDS.read_text(encoding="utf-8").split()
    for number, voice in enumerate(VOICES):
        rng = np.random.default_rng(number)
        lines = [f"(voice_czech_{voice})"]
        (folder / voice).mkdir(parents=True, exist_ok=True)
        for sentence in range(SENTENCES):
            text = " ".join(rng.choice(words, rng.integers(LENGTHS[0], LENGTHS[1] + 1)))
            target = (folder / voice / f"{sentence:03d}").resolve()
            if target.with_suffix(".segs").exists():
                continue
            lines.append(f'(set! u (SynthText "{text.capitalize()}."))')
            lines.append(f'(utt.save.wave u "{target}.wav" \'riff)')
            lines.append(f'(utt.save.segs u "{target}.segs")')
        with tempfile.NamedTemporaryFile("w", encoding=ENCODING, suffix=".scm") as script:
            script.write("\n".join(lines))
            script.flush()
            subprocess.run(["festival", "-b", script.name], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

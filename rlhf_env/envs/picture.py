"""A text as a picture, for Gymnasium's wrappers that record or show what an environment renders."""

from __future__ import annotations

import textwrap

import numpy as np
import numpy.typing as npt

TextPicture = npt.NDArray[np.uint8]

COLUMNS, LINES = 64, 12
_WIDTH, _HEIGHT, _SCALE = 5, 7, 2  # of a letter, in dots; and of a dot, in pixels
_INK, _PAPER = 0, 255

# The usual letters of five by seven dots, from the space to the tilde: a byte for each column, its lowest bit on top.
_LETTERS = np.frombuffer(
    bytes.fromhex(
        """
        0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649562050 0008070300
        001c224100 0041221c00 2a1c7f1c2a 08083e0808 0080703000 0808080808 0000606000 2010080402
        3e5149453e 00427f4000 7249494946 2141494d33 1814127f10 2745454539 3c4a494931 4121110907
        3649494936 464949291e 0000140000 0040340000 0008142241 1414141414 0041221408 0201590906
        3e415d594e 7c1211127c 7f49494936 3e41414122 7f4141413e 7f49494941 7f09090901 3e41415173
        7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f021c027f 7f0408107f 3e4141413e
        7f09090906 3e4151215e 7f09192946 2649494932 03017f0103 3f4040403f 1f2040201f 3f4038403f
        6314081463 0304780403 6159494d43 007f414141 0204081020 004141417f 0402010204 4040404040
        0003070800 2054547840 7f28444438 3844444428 384444287f 3854545418 00087e0902 18a4a49c78
        7f08040478 00447d4000 2040403d00 7f10284400 00417f4000 7c04780478 7c08040478 3844444438
        fc18242418 18242418fc 7c08040408 4854545424 04043f4424 3c4040207c 1c2040201c 3c4030403c
        4428102844 4c9090907c 4464544c44 0008364100 0000770000 0041360800 0201020402
        """
    ),
    np.uint8,
).reshape(-1, _WIDTH)
_UNKNOWN = np.array([[0x7F, 0x41, 0x41, 0x41, 0x7F]], dtype=np.uint8)  # a frame stands for every other character


def picture_of(text: str) -> TextPicture:
    """uint8[height, width, 3] of the same size for every text: `LINES` of `COLUMNS` letters, the last of a longer one.

    Letters of ASCII are drawn; any other character is a frame.
    """
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, COLUMNS) or [""]][-LINES:]
    codes = np.full((LINES, COLUMNS), ord(" "))
    for row, line in enumerate(lines):
        codes[row, : len(line)] = [ord(character) for character in line]
    places = np.where((codes >= ord(" ")) & (codes <= ord("~")), codes - ord(" "), len(_LETTERS))
    columns = np.concatenate([_LETTERS, _UNKNOWN])[places]  # [LINES, COLUMNS, _WIDTH] bytes
    # A letter's byte is a column of dots: one axis more, and each letter stands in a cell with a margin around it.
    dots = (columns[..., None] >> np.arange(_HEIGHT + 1, dtype=np.uint8)) & 1  # [LINES, COLUMNS, _WIDTH, _HEIGHT + 1]
    cells = np.zeros((LINES, COLUMNS, _HEIGHT + 3, _WIDTH + 1), dtype=np.uint8)
    cells[:, :, 1 : _HEIGHT + 2, :_WIDTH] = dots.swapaxes(2, 3)
    page = cells.swapaxes(1, 2).reshape(LINES * (_HEIGHT + 3), COLUMNS * (_WIDTH + 1))
    page = np.pad(page, 2).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    return np.repeat(np.where(page, _INK, _PAPER).astype(np.uint8)[..., None], 3, axis=2)

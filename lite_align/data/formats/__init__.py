"""Every data format: found by a vote over all rows, converted strictly, one decorated function each.

A new format is one function in `pairs.py` or `singles.py` and one sample file in `data_samples/formats/`.
"""

# importing the modules fills FORMATS
from lite_align.data.formats import pairs, singles, votes
from lite_align.data.formats.detection import Detection, convert, detect, read_rows, try_convert
from lite_align.data.formats.registry import FORMATS, Format, Problem

__all__ = [
    "FORMATS",
    "Detection",
    "Format",
    "Problem",
    "convert",
    "detect",
    "pairs",
    "read_rows",
    "singles",
    "try_convert",
    "votes",
]

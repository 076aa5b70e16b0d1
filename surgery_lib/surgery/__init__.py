"""The operation: probes, scores and selection of rows, and the edit itself."""

from surgery_lib.surgery.checks import check_direction, check_rows
from surgery_lib.surgery.edit import (
    FINGERPRINT_COLUMNS,
    Surgery,
    Unit,
    fingerprint,
    hash_samples,
    moved,
)

__all__ = [
    "FINGERPRINT_COLUMNS",
    "Surgery",
    "Unit",
    "check_direction",
    "check_rows",
    "fingerprint",
    "hash_samples",
    "moved",
]

"""What belongs to training, validation and test, decided by the text itself.

So no unit of text (a sentence, a task, a wrapping, a question) is ever in two of them.
"""

from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=1 << 16)
def split_of(text: str) -> str:
    """The one split a unit of text belongs to: train (70 %), validation (10 %) or test (20 %)."""
    bucket = blake2b(text.encode(), digest_size=2).digest()
    share = int.from_bytes(bucket, "big") / 65536
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"

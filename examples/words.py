"""An embedding model made of words: texts are near to each other by the words they share.  No network, no bill."""

import hashlib
import math
import re

from llama_index.core.base.embeddings.base import BaseEmbedding

_WORD = re.compile(r"[a-z][a-z_]{2,}")
_DIMENSIONS = 512


class Words(BaseEmbedding):
    """Takes the place of a real model where the examples have none: the stand-in understands nothing."""

    model_name: str = "words"

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.0] * _DIMENSIONS
        for word in set(_WORD.findall(text.lower())):
            digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
            counts[int.from_bytes(digest) % _DIMENSIONS] += len(word)  # long words say more
        length = math.hypot(*counts) or 1.0
        return [count / length for count in counts]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

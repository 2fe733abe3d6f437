"""A closed vocabulary: what a world's prompts may be made of, and the tokens its network reads. Token 0 is padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """`words` get tokens 1, 2, ... in their order; a prompt holds at most `length` of them."""

    words: tuple[str, ...]
    length: int

    @property
    def num_tokens(self) -> int:
        """Words and the padding token."""
        return len(self.words) + 1

    def encode(self, words: Sequence[str]) -> Int[Tensor, " L"]:
        """Tokens of one prompt, padded with 0; no word at all is the unconditional prompt."""
        if len(words) > self.length:
            raise ValueError(f"{' '.join(words)!r} has {len(words)} words; this model reads at most {self.length}")
        tokens = torch.zeros(self.length, dtype=torch.long)
        for position, word in enumerate(words):
            if word not in self.words:
                near = get_close_matches(word, self.words, n=3, cutoff=0.0)
                raise ValueError(f"{word!r} is no word this model knows; the nearest are {', '.join(near)}")
            tokens[position] = self.words.index(word) + 1
        return tokens

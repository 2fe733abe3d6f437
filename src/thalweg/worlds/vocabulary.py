"""A closed vocabulary: words of a world's prompts and the tokens its network reads; token 0 is padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.names import nearest


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
        text = " ".join(words)
        if len(words) > self.length:
            raise UserError(f"prompt '{text}': {len(words)} words; this world reads at most {self.length}")
        tokens = torch.zeros(self.length, dtype=torch.long)
        for position, word in enumerate(words):
            if word not in self.words:
                raise UserError(f"prompt '{text}': no such word '{word}'{nearest(word, self.words)}")
            tokens[position] = self.words.index(word) + 1
        return tokens

"""The tokens to be predicted, and what the model sees in their place (section 2.1, F37).

Each token that is not a special one is chosen with a chance of 15 %, independently. Of the chosen,
80 % become [MASK], 10 % a random piece of the whole vocabulary, 10 % stay: Devlin's rule, and what
the released code does (the paper prints 80 % and 20 % random). Masks are drawn again each time a
document comes round.
"""

from dataclasses import dataclass

import numpy as np

SHARE_MASK, SHARE_RANDOM = 0.8, 0.1  # of the chosen; the rest stay


@dataclass(frozen=True)
class Masking:
    """The rule, for one vocabulary."""

    V: int
    mask_id: int
    special_ids: tuple[int, ...]  # never predicted
    probability: float = 0.15

    def __call__(self, ids: np.ndarray, rng: np.random.Generator):
        """Mask one sequence or a row of them.

        Args:
            ids: (T,) integer token ids.
            rng: consumed by exactly 3 T numbers.
        Returns:
            input_ids (T,) int64, predict (M,) int64 places, ascending, labels (M,) int64.
        """
        return self.apply(ids, rng.random((3, len(ids))))

    def apply(self, ids: np.ndarray, draws: np.ndarray):
        """The same from given draws, token by token: the masks of a row are those of its parts.

        Args:
            draws: (3, T) in [0, 1): whether to choose, what to do, which piece instead.
        """
        chosen, deed, piece = draws
        is_special = np.isin(ids, self.special_ids)
        predict = np.flatnonzero((chosen < self.probability) & ~is_special)  # (M,)
        input_ids = ids.astype(np.int64)  # a copy
        labels = input_ids[predict]  # (M,)
        deed, piece = deed[predict], (piece[predict] * self.V).astype(np.int64)
        changed = np.where(deed < SHARE_MASK, self.mask_id, piece)
        input_ids[predict] = np.where(deed < SHARE_MASK + SHARE_RANDOM, changed, labels)
        return input_ids, predict, labels

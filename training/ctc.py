"""Connectionist temporal classification (Graves et al. 2006) in torch operations alone.

torch's own reads lengths on the host, which a captured step must not.
"""

import torch
from torch import Tensor

_NEVER = -1e30


def ctc_losses(found: Tensor, own: Tensor, words: Tensor, counts: Tensor, blank: int) -> Tensor:
    """Minus the log-likelihood of each example's words, float32 ``[batch]``.

    Args:
        found: log-probabilities ``[rows, batch, labels]``, float32.
        own: int64 ``[batch]``: how many of the rows are each example's.
        words: int64 ``[batch, n]``, read up to ``counts``.
        counts: int64 ``[batch]``.
        blank: the label that is no word.

    An example with more words than rows gets a loss of about 1e30; `usable` tells which are not.
    """
    rows, batch, _ = found.shape
    path = torch.full((batch, 2 * words.shape[1] + 1), blank, device=words.device)
    path[:, 1::2] = words
    heard = found.gather(2, path.expand(rows, -1, -1))
    place = torch.arange(path.shape[1], device=words.device)
    # From one word to the next without a blank between, where they differ.
    jumps = (place % 2 == 1) & (place > 1) & (path != path.roll(2, 1))
    never = torch.full_like(heard[0], _NEVER)
    reached = torch.where(place < 2, heard[0], never)
    for row in range(1, rows):
        stepped = torch.cat((never[:, :1], reached[:, :-1]), 1)
        jumped = torch.where(jumps, torch.cat((never[:, :2], reached[:, :-2]), 1), never)
        moved = torch.logsumexp(torch.stack((reached, stepped, jumped)), 0) + heard[row]
        reached = torch.where((row < own)[:, None], moved, reached)
    last = 2 * counts[:, None]
    ends = torch.cat((reached.gather(1, last), reached.gather(1, (last - 1).clamp_min(0))), 1)
    ends = torch.where(torch.cat((last >= 0, last > 0), 1), ends, never[:, :2])
    return -torch.logsumexp(ends, 1)


def usable(own: Tensor, words: Tensor, counts: Tensor) -> Tensor:
    """Which examples have words, and rows enough for them and the blanks between equal ones."""
    within = torch.arange(1, words.shape[1], device=words.device) < counts[:, None]
    doubles = ((words[:, 1:] == words[:, :-1]) & within).sum(1)
    return (counts > 0) & (own >= counts + doubles)

"""Counts of n-grams in many lines at once, and BLEU of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ganlib.config import ConfigError

try:
    from sacrebleu.metrics.bleu import BLEU
except ImportError as error:  # said before a training begins, when metrics are looked up
    raise ConfigError("BLEU of text needs the package sacrebleu: pip install -e '.[text]'") from error

__all__ = ["bleu", "distinct", "self_bleu"]

Ints = NDArray[np.int64]


def bleu(lines: Tensor, references: Tensor, order: int) -> float:
    """Corpus BLEU, 0 to 1, of token numbers `[N, L]`, 0 for none, where each line has all `references` `[M, L]`.

    N-grams up to `order`; an n-gram of a line counts as often as in the reference that has it most often, and each line
    is as long as it should be if some reference is. Papineni et al. 2002, as sacrebleu computes it from these counts,
    with its exponential smoothing. It rises with M.
    """
    made, real = _numpy(lines), _numpy(references)
    correct, total = [], []
    for n in range(1, order + 1):
        ids = _ids(np.concatenate([made, real]), n)
        of_made, of_real = _counts(ids[: len(made)]), _counts(ids[len(made) :])
        most = np.zeros(1 + max(ids.max(initial=0), 0), np.int64)
        np.maximum.at(most, of_real[1], of_real[2])
        correct.append(int(np.minimum(of_made[2], most[of_made[1]]).sum()))
        total.append(int(of_made[2].sum()))
    lengths, of_references = (made != 0).sum(1), np.unique((real != 0).sum(1))
    return _score(correct, total, lengths, _closest(lengths, of_references))


def self_bleu(lines: Tensor, order: int) -> float:
    """`bleu` of each line where all other lines are its references: 1 where all are alike. Zhu et al. 2018."""
    made = _numpy(lines)
    correct, total = [], []
    for n in range(1, order + 1):
        _, gram, count = _counts(_ids(made, n))
        size = 1 + max(gram.max(initial=0), 0)
        most, second, holders = (np.zeros(size, np.int64) for _ in range(3))
        np.maximum.at(most, gram, count)
        is_most = count == most[gram]
        np.add.at(holders, gram, is_most)
        np.maximum.at(second, gram[~is_most], count[~is_most])
        of_others = np.where(is_most & (holders[gram] == 1), second[gram], most[gram])
        correct.append(int(np.minimum(count, of_others).sum()))
        total.append(int(count.sum()))
    lengths = (made != 0).sum(1)
    values, counts = np.unique(lengths, return_counts=True)
    closest = lengths.copy()  # another line is as long
    for value in values[counts == 1]:
        closest[lengths == value] = _closest(np.array([value]), values[values != value])
    return _score(correct, total, lengths, closest)


def distinct(lines: Tensor, n: int) -> float:
    """Different n-grams over all n-grams in the lines `[N, L]`. Li et al. 2016, section 5."""
    _, gram, count = _counts(_ids(_numpy(lines), n))
    return len(np.unique(gram)) / max(1, int(count.sum()))


def _numpy(tokens: Tensor) -> Ints:
    return tokens.numpy().astype(np.int64)


def _ids(tokens: Ints, n: int) -> Ints:
    """The number of the n-gram that begins at each place, `[N, L − n + 1]`; −1 where the line ends before it does."""
    places = tokens.shape[1] - n + 1
    if places < 1:
        return np.full((len(tokens), 0), -1, np.int64)
    ids = tokens[:, :places]
    for i in range(1, n):
        # numbered anew, so that no product exceeds 63 bits
        paired = ids * (1 + tokens.max(initial=0)) + tokens[:, i : i + places]
        ids = np.unique(paired, return_inverse=True)[1].reshape(paired.shape)
    found: Ints = np.where(tokens[:, n - 1 :] != 0, ids, -1)
    return found


def _counts(ids: Ints) -> tuple[Ints, Ints, Ints]:
    """Line, n-gram and how often it occurs there, for each n-gram of each line."""
    size = 1 + max(ids.max(initial=0), 0)
    flat = (np.arange(len(ids))[:, None] * size + ids)[ids >= 0]
    keys, counts = np.unique(flat, return_counts=True)
    return keys // size, keys % size, counts


def _closest(lengths: Ints, known: Ints) -> Ints:
    """For each length the nearest of the `known`, sorted ones, the shorter of two; itself if there are none."""
    if not len(known):
        return lengths
    found: Ints = known[np.abs(known[None, :] - lengths[:, None]).argmin(1)]
    return found


def _score(correct: list[int], total: list[int], lengths: Ints, of_references: Ints) -> float:
    found = BLEU.compute_bleu(
        correct,
        total,
        int(lengths.sum()),
        int(of_references.sum()),
        smooth_method="exp",
        max_ngram_order=len(correct),
    )
    return float(found.score) / 100

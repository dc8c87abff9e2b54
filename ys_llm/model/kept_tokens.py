"""Which tokens of a document a copy tier keeps that looks for the surprising ones.

After each token at most `n_kept + n_recent` of its document are held: the latest `n_recent`, and of
those before them the `n_kept` with the greatest surprise; between equals the earlier one stays. A
token that has been dropped never comes back, so that one number says when a token is no longer
held. All of this depends on nothing that comes later, nor on how a text is cut into pieces.
"""

import heapq
from typing import NamedTuple

import torch
from torch import Tensor


class Room(NamedTuple):
    """How many tokens are held for their surprise, and how many because they are the latest."""

    n_kept: int
    n_recent: int


def room_of(window: int) -> Room:
    """A quarter for the latest tokens; with the token that is being read, `window` are in view."""
    n_recent = window // 4
    return Room(window - 1 - n_recent, n_recent)


def expiries(surprise_BN: Tensor, document_BN: Tensor, n_new: int, room: Room) -> Tensor | None:
    """B x N: how many of the `n_new` latest tokens have been read when a token is dropped.

    More than `n_new` for those that are not; None where there is room for all.
    """
    if surprise_BN.shape[1] <= sum(room):
        return None
    rows = zip(surprise_BN.tolist(), document_BN.tolist(), strict=True)
    found = [_expiries_of_row(surprise, document, n_new, room) for surprise, document in rows]
    return torch.tensor(found, device=surprise_BN.device)


def _expiries_of_row(
    surprise: list[float], document: list[int], n_new: int, room: Room
) -> list[int]:
    past, expires = len(surprise) - n_new, [n_new + 1] * len(surprise)
    heap: list[tuple[float, int]] = []  # (surprise, -index): the first to be dropped on top
    if past and document[past] == document[past - 1]:
        heap = [(surprise[i], -i) for i in range(past - room.n_recent) if document[i]]
        heapq.heapify(heap)
    for t in range(n_new):
        last = past + t
        if last and document[last] != document[last - 1]:
            heap = []
        leaving = last - room.n_recent
        if leaving < 0 or document[leaving] != document[last]:
            continue
        item = (surprise[leaving], -leaving)
        if len(heap) < room.n_kept:
            heapq.heappush(heap, item)
        else:
            expires[-heapq.heappushpop(heap, item)[1]] = t + 1
    return expires


def held(expires_BN: Tensor | None, document_BN: Tensor, n_new: int, room: Room) -> Tensor:
    """B x S, the indices of what is held after the last token, in order, S the same for all rows.

    A row that holds less begins with indices of tokens that are not held: see `is_held`.
    """
    n_held = min(document_BN.shape[1], sum(room))
    order_BN = is_held(expires_BN, document_BN, n_new).byte().argsort(dim=1, stable=True)
    return order_BN[:, order_BN.shape[1] - n_held :]


def is_held(expires_BN: Tensor | None, document_BN: Tensor, n_new: int) -> Tensor:
    """B x N, whether each token is held after the last one."""
    own_BN = document_BN == document_BN[:, -1:]
    return own_BN if expires_BN is None else own_BN & (expires_BN > n_new)

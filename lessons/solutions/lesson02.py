"""Solutions of lesson 02."""


def merge(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def encode_by_rank(ids, rank):
    ids = list(ids)
    while possible := [(rank[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in rank]:
        r, i = min(possible)
        ids[i : i + 2] = [256 + r]
    return ids


def decode(ids, merges):
    spelled, waiting = [], list(ids)
    while waiting:
        i = waiting.pop(0)
        if i < 256:
            spelled.append(i)
        else:
            waiting[:0] = merges[i - 256]
    return bytes(spelled).decode("utf-8", errors="replace")

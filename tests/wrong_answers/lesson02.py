"""Plausible wrong answers to the exercises of lesson 02: each must fail its check."""


def merge_with_overlap(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        hit = tuple(ids[i : i + 2]) == pair
        out.append(new if hit else ids[i])
        i += 1 + (hit and ids[i : i + 1] != ids[i + 1 : i + 2])
    return out


def merge_first_only(ids, pair, new):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return ids[:i] + [new] + ids[i + 2 :]
    return list(ids)


def merge_loses_the_last(ids, pair, new):
    out, i = [], 0
    while i < len(ids) - 1:
        hit = (ids[i], ids[i + 1]) == pair
        out.append(new if hit else ids[i])
        i += 1 + hit
    return out


def merge_from_the_right(ids, pair, new):
    out, i = [], len(ids)
    while i > 0:
        hit = i > 1 and (ids[i - 2], ids[i - 1]) == pair
        out.insert(0, new if hit else ids[i - 1])
        i -= 1 + hit
    return out


def merge_in_place(ids, pair, new):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new]
        i += 1
    return ids


def merge_again_what_it_made(ids, pair, new):
    ids, i = list(ids), 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new]
        else:
            i += 1
    return ids


def merge_in_either_order(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        hit = sorted(ids[i : i + 2]) == sorted(pair)
        out.append(new if hit else ids[i])
        i += 1 + hit
    return out


def merge_as_text(ids, pair, new):
    text = " ".join(map(str, ids)).replace(f"{pair[0]} {pair[1]}", str(new))
    return [int(i) for i in text.split()]


def merge_keeps_the_second(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        out.append(new if tuple(ids[i : i + 2]) == pair else ids[i])
        i += 1
    return out


def encode_by_rank_leftmost_first(ids, rank):
    return _encode(ids, rank, lambda r, i: (i, r))


def encode_by_rank_highest_first(ids, rank):
    return _encode(ids, rank, lambda r, i: (-r, i))


def encode_by_rank_rightmost_of_equal(ids, rank):
    return _encode(ids, rank, lambda r, i: (r, -i))


def encode_by_rank_one_step(ids, rank):
    return _encode(ids, rank, lambda r, i: (r, i), steps=1)


def encode_by_rank_without_256(ids, rank):
    return _encode(ids, rank, lambda r, i: (r, i), first=0)


def encode_by_rank_off_by_one(ids, rank):
    return _encode(ids, rank, lambda r, i: (r, i), first=257)


def encode_by_rank_pairs_of_the_start_only(ids, rank):
    ids = list(ids)
    for pair in sorted({pair for pair in zip(ids, ids[1:]) if pair in rank}, key=rank.get):
        i = 0
        while i < len(ids):
            if tuple(ids[i : i + 2]) == pair:
                ids[i : i + 2] = [256 + rank[pair]]
            i += 1
    return ids


def encode_by_rank_longest_piece(ids, rank):
    spelled = {i: (i,) for i in range(256)}
    for (a, b), r in sorted(rank.items(), key=lambda item: item[1]):
        spelled[256 + r] = spelled[a] + spelled[b]
    out, i = [], 0
    while i < len(ids):
        fits = [t for t, s in spelled.items() if tuple(ids[i : i + len(s)]) == s]
        out.append(max(fits, key=lambda t: len(spelled[t])))
        i += len(spelled[out[-1]])
    return out


def decode_characters_for_bytes(ids, merges):
    return "".join(chr(b) for b in _bytes(ids, merges))


def decode_each_id_alone(ids, merges):
    return "".join(_bytes([i], merges).decode("utf-8", errors="replace") for i in ids)


def decode_broken_raises(ids, merges):
    return _bytes(ids, merges).decode("utf-8")


def decode_broken_left_out(ids, merges):
    return _bytes(ids, merges).decode("utf-8", errors="ignore")


def decode_one_level(ids, merges):
    parts = [part for i in ids for part in ([i] if i < 256 else merges[i - 256])]
    return bytes(part for part in parts if part < 256).decode("utf-8", errors="replace")


def decode_off_by_one(ids, merges):
    return _bytes([i if i < 257 else i - 1 for i in ids], merges).decode("utf-8", errors="replace")


def decode_parts_swapped(ids, merges):
    return _bytes(ids, [(b, a) for a, b in merges]).decode("utf-8", errors="replace")


def decode_zero_is_a_pad(ids, merges):
    return _bytes([i for i in ids if i], merges).decode("utf-8", errors="replace")


def _encode(ids, rank, order, steps=1000, first=256):  # to build wrong ones on
    ids = list(ids)
    for _ in range(steps):
        possible = [(order(rank[pair], i), rank[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in rank]
        if not possible:
            break
        _, r, i = min(possible)
        ids[i : i + 2] = [first + r]
    return ids


def _bytes(ids, merges):
    spelled = [bytes([i]) for i in range(256)]
    for a, b in merges:
        spelled.append(spelled[a] + spelled[b])
    return b"".join(spelled[i] for i in ids)

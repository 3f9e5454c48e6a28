"""Attention forward as one Triton kernel: softmax(scale · Q Kᵀ, where the mask allows) V, tile by tile, no score stored.

Read `tiled.py` first: it is the same algorithm with the same names as PyTorch loops. What this file adds is where
things are. One program takes one head and one tile of BLOCK_M queries, and goes over tiles of BLOCK_N keys:

    q   (BLOCK_M, D)         the queries, loaded once                              registers or shared memory
    k,v (BLOCK_N, D)         keys and values, one tile after the other             shared memory, loaded ahead of use
    s   (BLOCK_M, BLOCK_N)   scores of this tile                                   registers
    m,l (BLOCK_M,)           the largest score so far, the sum of exponentials     registers
    acc (BLOCK_M, D)         the sum of p · V so far, in float32                   registers

**Softmax while the keys go by** (Milakov and Gimelshein 2018; for attention Dao et al. 2022). With m the largest score so far, keep l = Σ exp(s - m) and acc = Σ exp(s - m) v. A new
tile may hold a larger score, m'. Everything kept so far was measured from m and has to be measured from m':

    l ← l · exp(m - m') + Σ exp(s - m')        acc ← acc · exp(m - m') + exp(s - m') V

At the end acc / l is the softmax's average of V, and m + log l the logarithm of its denominator, which the backward
needs. The GPU has an instruction for 2ˣ and none for eˣ, so all of this is in base 2: the scale, times log₂ e, is
multiplied in by the same instruction that subtracts m. m starts from a large negative number and not from -∞, because
a row may see nothing in its first tiles, and -∞ - (-∞) is no number.

**Which tiles.** Every mask of DALL-E (SPEC 5) is "a text prefix plus one contiguous band", if the image comes column
by column for the column mask, which `attention.py` sees to. So query i sees key j if

    j <= i   and   (j < TEXT  or  j >= first_key(i)  [conv: and j is near in its row, too])

and a tile of queries needs two loops: over whole tiles of text, which all its queries see in full (of all keys before
it, where the mask is causal), without a mask; and over its band, with one. Other tiles are never touched.
"""

import triton
import triton.language as tl

# --- shared with backward.py; all of it is inlined -----------------------------------------------------------------


@triton.jit
def rows_of(base, stride, T: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """What `load_tile` reads from: base points to (T, D) with rows `stride` elements apart.

    A descriptor tells Hopper's copy unit (TMA) the whole matrix, so that one thread fetches a tile; others get (BLOCK, D)
    pointers.
    """
    if DESCRIPTORS:
        return tl.make_tensor_descriptor(base, [T, D], [stride, 1], [BLOCK, D])
    else:
        return base + tl.arange(0, BLOCK)[:, None] * stride + tl.arange(0, D)[None, :]


@triton.jit
def load_tile(rows, stride, start, T: tl.constexpr, BLOCK: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Rows start … start + BLOCK - 1, (BLOCK, D); those from T on are zero and their memory is not read."""
    if DESCRIPTORS:
        return rows.load([start, 0])
    elif T % BLOCK == 0:
        return tl.load(rows + start * stride)
    else:
        inside = start + tl.arange(0, BLOCK) < T
        return tl.load(rows + start * stride, mask=inside[:, None], other=0.0)


@triton.jit
def first_key(i, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr):
    """The first key of the band of query i: for text and for the causal mask 0, else a position in the image."""
    if KIND == "row":
        first = i - GRID
    elif KIND == "column":  # the image comes column by column: the band begins with the column
        first = i - (i - TEXT) % ROWS
    elif KIND == "conv":
        first = i - (GRID * HALF + HALF)
    else:
        first = i * 0
    return tl.where(i < TEXT, 0, first if KIND == "causal" else tl.maximum(first, TEXT))


@triton.jit
def near_bits(position, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr):
    """For conv: 32 bits, of which bit c is set if positions that are c modulo 32 are near `position` in a row of the grid.

    Near are those up to HALF to the left and right, counted on around the ends of a row as P Fig. 11 does; so the
    pattern repeats every GRID bits. Where GRID does not divide 32 there is no such word: this returns the position, for
    `hide` to count from. A position in the text is near everything.
    """
    if 32 % GRID != 0:
        return position
    else:
        ones = tl.full(position.shape, 0xFFFFFFFF, tl.uint32)
        bits = ones * 0
        for turn in tl.static_range(0, 32, GRID):
            bits |= ones & (((1 << (2 * HALF + 1)) - 1 << turn) % 2**32)
        start = ((position - HALF) & 31).to(tl.uint32)
        return tl.where(position < TEXT, ones, (bits << start) | (bits >> ((32 - start) & 31)))


@triton.jit
def smaller(a, b):
    """The minimum; NaN if one is NaN, where a GPU would else take the other and hide that something went wrong."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def hide(
    s, x, low, high, near, corner,
    KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The scores s, but -∞ or nearly so (under -10²⁷) where a query does not see a key.

    x, 0 … BLOCK - 1, counts along one side of the tile, from position `corner` on. low … high is the band of positions
    that is seen; it and the `near_bits` belong to the other side of the tile, of which a thread holds few entries: what
    is done to them alone costs next to nothing, and what is done to every score as much as the softmax itself. So:

    A band is no comparison but a parabola, r² - (x - middle)²: positive inside and negative outside. Times 2⁹⁶ it is
    more, or less, than any score, and the score's minimum with it is what is wanted: three instructions a score. What
    is squared are halves times a power of two, so that near zero, where the sign turns, nothing is rounded away.
    For the row mask, GRID 2 and a query at 7, say: low 5, high 7, so middle 6, r 1.5: 2.25 - 1 at 5 and 7, 2.25 - 4 at 4.

    conv is a word of bits for every 32 positions, and a score's bit, shifted up to the sign and spread, selects it.
    """
    FAR: tl.constexpr = 2.0**48
    if KIND == "conv" and GRID > 2 * HALF + 1 and 32 % GRID == 0:
        ones = tl.full(high.shape, 0xFFFFFFFF, tl.uint32)
        first, last = (low >> 5) - (corner >> 5), (high >> 5) - (corner >> 5)  # words of the tile at the band's ends
        from_first = ones << (low & 31).to(tl.uint32)
        to_last = ones >> (31 - (high & 31)).to(tl.uint32)
        word = ones * 0
        for w in tl.static_range(BLOCK // 32):
            bits = tl.where((first <= w) & (w <= last), near, 0)
            bits &= tl.where(w == first, from_first, ones) & tl.where(w == last, to_last, ones)
            word = tl.where(x < 32 * w, word, bits)
        seen = (word << (31 - (x & 31)).to(tl.uint32)).to(tl.int32, bitcast=True) >> 31  # all bits or none
        s = (s.to(tl.int32, bitcast=True) & seen) | (~seen & -0x800000)  # 0xff800000 is -∞
        return s.to(tl.float32, bitcast=True)
    elif KIND == "causal":
        return smaller(s, (high - corner + 0.5) * (FAR * FAR) - x * (FAR * FAR))
    else:
        off = x * FAR - (low + high - 2 * corner) * (0.5 * FAR)
        radius = (high - low + 1) * (0.5 * FAR)
        s = smaller(s, radius * radius - off * off)
        if KIND == "conv" and GRID > 2 * HALF + 1:  # a row of the grid fits no word: count around its ends
            aside = (x + corner - near + HALF + 65536 * GRID) % GRID
            s = tl.where((aside <= 2 * HALF) | (near < TEXT), s, float("-inf"))
        return s


# --- the kernel ----------------------------------------------------------------------------------------------------


@triton.jit
def key_tiles(
    m0, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """For the queries from m0 on, in keys: `whole`, where the whole tiles end; `begin`, where the band begins; `start`,
    where the loop over it starts; and where it ends.

    If the text does not end with a tile, one tile holds its end and the begin of the image. Where the band is further
    on, that tile comes before it: `start` is then one tile lower, and what stands below `begin` means that tile.
    """
    T: tl.constexpr = TEXT + ROWS * GRID
    seen_by_all = m0 + 1 if KIND == "causal" else tl.minimum(m0 + 1, TEXT)
    whole = seen_by_all // BLOCK_N * BLOCK_N
    begin = tl.maximum(first_key(m0, KIND, TEXT, GRID, ROWS, HALF) // BLOCK_N * BLOCK_N, whole)
    start = begin
    if TEXT % BLOCK_N != 0 and KIND != "causal":
        start -= tl.where(begin > whole, BLOCK_N, 0)
    return whole, begin, start, tl.minimum(m0 + BLOCK_M, T)


@triton.jit
def softmax_tile(l, m, s, scale):
    """Fold a tile of scores into (l, m). Returns what they become, the tile's p, and the factor that all before it shrinks by."""
    larger = tl.maximum(m, tl.max(s, 1) * scale)  # (BLOCK_M,)
    p = tl.math.exp2(s * scale - larger[:, None])
    shrink = tl.math.exp2(m - larger)
    return l * shrink + tl.sum(p, 1), larger, p, shrink


@triton.jit
def band_scores(
    s, i, low, near, n0,
    KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr, EDGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """s (BLOCK_M, BLOCK_N), hidden where query i does not see key n0 + x."""
    x = tl.arange(0, BLOCK_N)[None, :]
    band = hide(s, x, low[:, None], i[:, None], near[:, None], n0, KIND, TEXT, GRID, HALF, BLOCK_N)
    if EDGE:  # text and image in one tile: keys of the text up to i are seen as well
        text_end = tl.minimum(i, TEXT - 1)[:, None]
        text = hide(s, x, low[:, None], text_end, near[:, None], n0, "causal", TEXT, GRID, HALF, BLOCK_N)
        band = tl.maximum(band, text, propagate_nan=tl.PropagateNan.ALL)
    return band


@triton.jit
def attention_forward(
    Q, K, V, O, M, LOG_L,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt, stride_ob, stride_oh, stride_ot,
    H, scale,
    KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr, BEHIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Q, K, V, O (B, H, T, D) with the strides given, in elements, and 1 along D; M, LOG_L (B, H, T) float32, contiguous.

    Grid (B · H, ceil(T / BLOCK_M)): heads vary fastest and the tiles with most keys come first, so that the last
    programs to start are short ones. scale: 1/√D · log₂ e. For the backward, M and LOG_L receive m = max scale · s and
    log₂ Σ 2^(scale · s - m). In 16 bits M receives their sum and LOG_L nothing: where scores are large the sum has few
    digits left, which only float32 would notice.

    BEHIND: multiply each tile's p with its values one tile later. On Hopper, tensor cores work while the warp goes on;
    so they multiply the last tile's p while this tile's exponentials are taken. Elsewhere it would only take registers.
    """
    T: tl.constexpr = TEXT + ROWS * GRID
    EDGE: tl.constexpr = KIND != "causal" and (TEXT % BLOCK_M != 0 or TEXT % BLOCK_N != 0)
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    m0 = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    i = m0 + tl.arange(0, BLOCK_M)

    queries = rows_of(Q + b * stride_qb + h * stride_qh, stride_qt, T, D, BLOCK_M, DESCRIPTORS)
    keys = rows_of(K + b * stride_kb + h * stride_kh, stride_kt, T, D, BLOCK_N, DESCRIPTORS)
    values = rows_of(V + b * stride_vb + h * stride_vh, stride_vt, T, D, BLOCK_N, DESCRIPTORS)
    q = load_tile(queries, stride_qt, m0, T, BLOCK_M, DESCRIPTORS)
    low = first_key(i, KIND, TEXT, GRID, ROWS, HALF)
    near = near_bits(i, TEXT, GRID, HALF) if KIND == "conv" else i

    m = tl.full([BLOCK_M], -1e20, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    whole, begin, start, end = key_tiles(m0, KIND, TEXT, GRID, ROWS, HALF, BLOCK_M, BLOCK_N)
    last = tl.where((whole > 0) | (start < begin), 0, start)  # the first tile; later that whose values come next
    if BEHIND:
        k = load_tile(keys, stride_kt, last, T, BLOCK_N, DESCRIPTORS)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        band = band_scores(s, i, low, near, last, KIND, TEXT, GRID, HALF, EDGE, BLOCK_N)
        s = tl.where(whole > 0, s, band)
        l, m, p, shrink = softmax_tile(l, m, s, scale)
        start = tl.where(whole > 0, start, start + BLOCK_N)
    for n0 in range(BLOCK_N if BEHIND else 0, whole, BLOCK_N):
        k = load_tile(keys, stride_kt, n0, T, BLOCK_N, DESCRIPTORS)
        s = tl.dot(q, k.T, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        if BEHIND:
            v = load_tile(values, stride_vt, n0 - BLOCK_N, T, BLOCK_N, DESCRIPTORS)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        l, m, p, shrink = softmax_tile(l, m, s, scale)
        if not BEHIND:
            v = load_tile(values, stride_vt, n0, T, BLOCK_N, DESCRIPTORS)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    last = tl.where(whole > 0, whole - BLOCK_N, last)
    for at in range(start, end, BLOCK_N):
        n0 = tl.where(at < begin, whole, at) if EDGE else at
        k = load_tile(keys, stride_kt, n0, T, BLOCK_N, DESCRIPTORS)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if BEHIND:
            v = load_tile(values, stride_vt, last, T, BLOCK_N, DESCRIPTORS)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            last = n0
        s = band_scores(s, i, low, near, n0, KIND, TEXT, GRID, HALF, EDGE, BLOCK_N)
        l, m, p, shrink = softmax_tile(l, m, s, scale)
        if not BEHIND:
            v = load_tile(values, stride_vt, n0, T, BLOCK_N, DESCRIPTORS)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    if BEHIND:
        v = load_tile(values, stride_vt, last, T, BLOCK_N, DESCRIPTORS)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    log_l = tl.math.log2(l)
    if Q.dtype.element_ty == tl.float32:
        tl.store(M + head * T + i, m, mask=i < T)
        tl.store(LOG_L + head * T + i, log_l, mask=i < T)
    else:
        tl.store(M + head * T + i, m + log_l, mask=i < T)
    out = O + b * stride_ob + h * stride_oh + i[:, None] * stride_ot + tl.arange(0, D)[None, :]
    tl.store(out, (acc / l[:, None]).to(O.dtype.element_ty), mask=(i < T)[:, None])

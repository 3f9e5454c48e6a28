"""Attention backward as two Triton kernels: dQ, tile of queries by tile; then dK and dV, tile of keys by tile.

With s = scale · q·k, p = softmax(s) and o = Σ p v as in forward.py, and dO given, the chain rule says, row by row:

    dV = Pᵀ dO                  o is linear in v
    dP = dO Vᵀ                  and in p
    dS = P ∘ (dP - delta)       the softmax's Jacobian is diag(p) - p pᵀ: so ds_j = p_j (dp_j - Σ_k p_k dp_k),
                                and Σ_k p_k dp_k = Σ_k p_k dO·v_k = dO·o, one number a row: delta
    dQ = scale · dS K           s is linear in q
    dK = scale · dSᵀ Q          and in k

P is not kept from the forward but computed anew, tile by tile, from what the forward kept of each row, its maximum m and
the logarithm of its denominator: p = 2^(scale · s - m - log_l), to base 2.

dQ is a sum over keys, dK and dV are sums over queries. One kernel for both would have to add to one of them from many
programs at once, in an order that differs from run to run, and so would the last bits. Hence two kernels that compute P
and dP twice, seven products of matrices in place of five, and nothing is added to by two programs. The first has o and
dO of its rows at hand, so it computes delta, which the second reads.

Which tiles: for queries as in forward.py. A tile of keys is seen by queries from itself on: those of its band, under
the mask; or, if it lies in the text or the mask is causal, all later ones, of which only the first need the mask.
"""

import triton
import triton.language as tl

from kernels.forward import band_scores, first_key, hide, key_tiles, load_tile, near_bits, rows_of


@triton.jit
def load_numbers(base, i, T: tl.constexpr, BLOCK_M: tl.constexpr):
    """One number for each of the queries i, (BLOCK_M,); 0 from T on."""
    if T % BLOCK_M == 0:
        return tl.load(base + i)
    else:
        return tl.load(base + i, mask=i < T, other=0.0)


@triton.jit
def probabilities(s, m, log_l, scale, EXACT: tl.constexpr):
    """2^(scale · s - m - log_l); in 16 bits m holds the sum of both already."""
    if EXACT:
        return tl.math.exp2((s * scale - m) - log_l)
    else:
        return tl.math.exp2(s * scale - m)


@triton.jit
def backward_queries(
    Q, K, V, O, DO, M, LOG_L, DELTA, DQ,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt,
    H, scale, scale_natural,
    KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Q, K, V, O and DO, the gradient of O (its strides are stride_g·), (B, H, T, D); M, LOG_L, DELTA (B, H, T) float32
    and DQ (B, H, T, D), contiguous. Writes DELTA and DQ. Grid and scale as in the forward; scale_natural: 1/√D."""
    T: tl.constexpr = TEXT + ROWS * GRID
    EXACT: tl.constexpr = Q.dtype.element_ty == tl.float32
    EDGE: tl.constexpr = KIND != "causal" and (TEXT % BLOCK_M != 0 or TEXT % BLOCK_N != 0)
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    m0 = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    i = m0 + tl.arange(0, BLOCK_M)

    queries = rows_of(Q + b * stride_qb + h * stride_qh, stride_qt, T, D, BLOCK_M, DESCRIPTORS)
    outputs = rows_of(O + b * stride_ob + h * stride_oh, stride_ot, T, D, BLOCK_M, DESCRIPTORS)
    gradients = rows_of(DO + b * stride_gb + h * stride_gh, stride_gt, T, D, BLOCK_M, DESCRIPTORS)
    keys = rows_of(K + b * stride_kb + h * stride_kh, stride_kt, T, D, BLOCK_N, DESCRIPTORS)
    values = rows_of(V + b * stride_vb + h * stride_vh, stride_vt, T, D, BLOCK_N, DESCRIPTORS)
    q = load_tile(queries, stride_qt, m0, T, BLOCK_M, DESCRIPTORS)
    do = load_tile(gradients, stride_gt, m0, T, BLOCK_M, DESCRIPTORS)
    o = load_tile(outputs, stride_ot, m0, T, BLOCK_M, DESCRIPTORS)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)  # (BLOCK_M,)
    tl.store(DELTA + head * T + i, delta, mask=i < T)
    m = load_numbers(M + head * T, i, T, BLOCK_M)
    log_l = load_numbers(LOG_L + head * T, i, T, BLOCK_M) if EXACT else m
    low = first_key(i, KIND, TEXT, GRID, ROWS, HALF)
    near = near_bits(i, TEXT, GRID, HALF) if KIND == "conv" else i

    dq = tl.zeros([BLOCK_M, D], tl.float32)
    whole, begin, start, end = key_tiles(m0, KIND, TEXT, GRID, ROWS, HALF, BLOCK_M, BLOCK_N)
    for n0 in range(0, whole, BLOCK_N):
        k = load_tile(keys, stride_kt, n0, T, BLOCK_N, DESCRIPTORS)
        v = load_tile(values, stride_vt, n0, T, BLOCK_N, DESCRIPTORS)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        p = probabilities(s, m[:, None], log_l[:, None], scale, EXACT)  # (BLOCK_M, BLOCK_N)
        dp = tl.dot(do, v.T, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    for at in range(start, end, BLOCK_N):
        n0 = tl.where(at < begin, whole, at) if EDGE else at
        k = load_tile(keys, stride_kt, n0, T, BLOCK_N, DESCRIPTORS)
        v = load_tile(values, stride_vt, n0, T, BLOCK_N, DESCRIPTORS)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        s = band_scores(s, i, low, near, n0, KIND, TEXT, GRID, HALF, EDGE, BLOCK_N)
        p = probabilities(s, m[:, None], log_l[:, None], scale, EXACT)  # (BLOCK_M, BLOCK_N)
        dp = tl.dot(do, v.T, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    out = DQ + head.to(tl.int64) * T * D + i[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out, (dq * scale_natural).to(DQ.dtype.element_ty), mask=(i < T)[:, None])


@triton.jit
def last_query(j, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr):
    """The last query whose band reaches key j; for text and for the causal mask the last of all."""
    T: tl.constexpr = TEXT + ROWS * GRID
    if KIND == "row":
        last = j + GRID
    elif KIND == "column":
        last = j + ROWS - 1 - (j - TEXT) % ROWS
    elif KIND == "conv":
        last = j + GRID * HALF + HALF
    else:
        last = j * 0 + T
    return tl.where(j < TEXT, T - 1, tl.minimum(last, T - 1))


@triton.jit
def query_tiles(
    n0, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """For the keys from n0 on: where the queries that see some of them begin, where whole tiles begin, where all ends."""
    T: tl.constexpr = TEXT + ROWS * GRID
    end = last_query(tl.minimum(n0 + BLOCK_N, T) - 1, KIND, TEXT, GRID, ROWS, HALF) + 1
    # T itself, but as a number that the compiler cannot know: with a constant here, that of Triton 3.7 lets Hopper's
    # products of the causal mask wait for each other.
    all_later = tl.minimum(tl.num_programs(1) * BLOCK_N, T)
    end = tl.where((n0 < TEXT) | (KIND == "causal"), all_later, end)
    seen_by_all_later = (n0 + BLOCK_N <= TEXT) | (KIND == "causal")
    whole = tl.minimum(tl.cdiv(n0 + BLOCK_N - 1, BLOCK_M) * BLOCK_M, end)
    return n0 // BLOCK_M * BLOCK_M, tl.where(seen_by_all_later, whole, end), end


@triton.jit
def transposed_scores(k, q, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """k qᵀ; in float32 summed as the forward does it, to the last bit: where scores are large, p hangs on it."""
    if EXACT:
        return tl.dot(q, k.T, input_precision=PRECISION).T
    else:
        return tl.dot(k, q.T, input_precision=PRECISION)


@triton.jit
def backward_keys(
    Q, K, V, DO, M, LOG_L, DELTA, DK, DV,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_gb, stride_gh, stride_gt,
    H, scale, scale_natural,
    KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `backward_queries`, after it: reads DELTA, writes DK and DV (B, H, T, D), contiguous.

    Grid (B · H, ceil(T / BLOCK_N)); the first keys are seen by most queries and come first. All tiles of scores are
    transposed here, keys down and queries across, so that what multiplies dO and q need not be.
    """
    T: tl.constexpr = TEXT + ROWS * GRID
    EXACT: tl.constexpr = Q.dtype.element_ty == tl.float32
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    n0 = tl.program_id(1) * BLOCK_N
    j = n0 + tl.arange(0, BLOCK_N)
    x = tl.arange(0, BLOCK_M)

    queries = rows_of(Q + b * stride_qb + h * stride_qh, stride_qt, T, D, BLOCK_M, DESCRIPTORS)
    gradients = rows_of(DO + b * stride_gb + h * stride_gh, stride_gt, T, D, BLOCK_M, DESCRIPTORS)
    keys = rows_of(K + b * stride_kb + h * stride_kh, stride_kt, T, D, BLOCK_N, DESCRIPTORS)
    values = rows_of(V + b * stride_vb + h * stride_vh, stride_vt, T, D, BLOCK_N, DESCRIPTORS)
    k = load_tile(keys, stride_kt, n0, T, BLOCK_N, DESCRIPTORS)
    v = load_tile(values, stride_vt, n0, T, BLOCK_N, DESCRIPTORS)
    last = last_query(j, KIND, TEXT, GRID, ROWS, HALF)
    near = near_bits(j, TEXT, GRID, HALF) if KIND == "conv" else j

    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)
    start, whole, end = query_tiles(n0, KIND, TEXT, GRID, ROWS, HALF, BLOCK_M, BLOCK_N)
    for m0 in range(start, whole, BLOCK_M):
        q = load_tile(queries, stride_qt, m0, T, BLOCK_M, DESCRIPTORS)
        do = load_tile(gradients, stride_gt, m0, T, BLOCK_M, DESCRIPTORS)
        m = load_numbers(M + head * T, m0 + x, T, BLOCK_M)
        log_l = load_numbers(LOG_L + head * T, m0 + x, T, BLOCK_M) if EXACT else m
        delta = load_numbers(DELTA + head * T, m0 + x, T, BLOCK_M)
        s = transposed_scores(k, q, EXACT, PRECISION)  # (BLOCK_N, BLOCK_M)
        if KIND == "causal":  # queries from j on: in a mirror, those up to it
            s = hide(s, -x[None, :], j[:, None], -j[:, None], near, -m0, KIND, TEXT, GRID, HALF, BLOCK_M)
        else:
            s = hide(s, x[None, :], j[:, None], last[:, None], near[:, None], m0, KIND, TEXT, GRID, HALF, BLOCK_M)
        if DESCRIPTORS:  # Hopper multiplies this during the exponentials; elsewhere it would only take registers
            dp = tl.dot(v, do.T, input_precision=PRECISION)
        p = probabilities(s, m[None, :], log_l[None, :], scale, EXACT)  # (BLOCK_N, BLOCK_M)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        if not DESCRIPTORS:
            dp = tl.dot(v, do.T, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    for m0 in range(whole, end, BLOCK_M):
        q = load_tile(queries, stride_qt, m0, T, BLOCK_M, DESCRIPTORS)
        do = load_tile(gradients, stride_gt, m0, T, BLOCK_M, DESCRIPTORS)
        m = load_numbers(M + head * T, m0 + x, T, BLOCK_M)
        log_l = load_numbers(LOG_L + head * T, m0 + x, T, BLOCK_M) if EXACT else m
        delta = load_numbers(DELTA + head * T, m0 + x, T, BLOCK_M)
        s = transposed_scores(k, q, EXACT, PRECISION)
        if DESCRIPTORS:  # Hopper multiplies this during the exponentials; elsewhere it would only take registers
            dp = tl.dot(v, do.T, input_precision=PRECISION)
        p = probabilities(s, m[None, :], log_l[None, :], scale, EXACT)  # (BLOCK_N, BLOCK_M)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        if not DESCRIPTORS:
            dp = tl.dot(v, do.T, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    out = head.to(tl.int64) * T * D + j[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(DV + out, dv.to(DV.dtype.element_ty), mask=(j < T)[:, None])
    tl.store(DK + out, (dk * scale_natural).to(DK.dtype.element_ty), mask=(j < T)[:, None])

"""minidalle: DALL-E (v1) from scratch. Read the modules in this order; each needs only those before it.

    config -> bpe, data, dvae -> sequence -> attention -> transformer -> cache -> sample -> clip -> checkpoint, muon
           -> train -> oracle -> evaluate -> plots

Symbols, the same in every file:

    B batch size          T positions in the stream     C width of the transformer (n_embd)
    H heads               D width of a head             V text vocabulary        K codebook size
    G codes in a row (grid); a picture has rows x grid codes        S side of a square picture in pixels
"""

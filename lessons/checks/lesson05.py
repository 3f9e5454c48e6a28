"""Checks of lesson 05."""

import torch

from checks import Wrong, exercise, expect, expect_tensor


def _ask(what: str, fn, *args):
    """fn(*args); where it raises, the sentence begins with `what`, which names the arguments."""
    try:
        return fn(*args)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Wrong(f"{what}: your function raised {type(error).__name__}: {error}") from None


@exercise
def check_pack(fn):
    for token_lists, text_len in (
        ([[7, 0], [5, 6, 7, 8]], 4),
        ([[0, 5, 0], [], [19, 3, 2, 1, 4], [1, 2, 3, 4, 5, 6, 7]], 6),
        ([[3]], 9),
        ([[4, 0, 9]], 2),
    ):
        given = [list(tokens) for tokens in token_lists]
        wanted = []
        for tokens in token_lists:
            tokens = tokens[: text_len - 1]
            wanted.append(tokens + [-1] * (text_len - len(tokens)))
        what = f"the captions {token_lists} with text_len {text_len}"
        expect_tensor(what, _ask(what, fn, given, text_len), torch.tensor(wanted))
        expect(given == token_lists, f"the caller's lists were changed: {token_lists} became {given}")


@exercise
def check_embed_text(fn):
    V, C = 9, 5
    for text in (
        [[3, 0, 8, -1, -1, -1], [0, -1, -1, -1, -1, -1]],
        [[7, 6, 5, -1]],
        [[-1, -1, -1], [-1, -1, -1]],
        [[0, -1], [8, -1], [-1, -1]],
    ):
        text_len = len(text[0])
        tokens, pads, places = torch.randn(V, C), torch.randn(text_len, C), torch.randn(text_len, C)
        wanted = [
            [(pads[p] if token == -1 else tokens[token]) + places[p] for p, token in enumerate(row)] for row in text
        ]
        given, tables = torch.tensor(text), [tokens.clone(), pads.clone(), places.clone()]
        got = _ask(f"the text {text}", fn, given, *tables)
        expect_tensor(f"the text {text}", got, torch.stack([torch.stack(row) for row in wanted]))
        expect(given.tolist() == text, f"the caller's text was changed: {text} became {given.tolist()}")
        unchanged = all(torch.equal(a, b) for a, b in zip(tables, (tokens, pads, places)))
        expect(unchanged, "one of the tables was changed: add out of place")


@exercise
def check_embed_image(fn):
    K, C = 11, 5
    for rows, grid, B, n in ((3, 3, 2, 9), (2, 4, 1, 8), (4, 2, 2, 8), (5, 3, 2, 7), (3, 5, 1, 1)):
        codes = torch.randint(K, (B, n))
        tokens, row, column = torch.randn(K, C), torch.randn(rows, C), torch.randn(grid, C)
        wanted = torch.stack(
            [torch.stack([tokens[codes[b, i]] + row[i // grid] + column[i % grid] for i in range(n)]) for b in range(B)]
        )
        what = f"{n} cells of a grid of {rows} rows and {grid} columns"
        given, tables = codes.clone(), [tokens.clone(), row.clone(), column.clone()]
        expect_tensor(what, _ask(what, fn, given, *tables), wanted)
        unchanged = all(torch.equal(a, b) for a, b in zip([given, *tables], (codes, tokens, row, column)))
        expect(unchanged, "the codes or one of the tables were changed: add out of place")

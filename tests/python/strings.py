"""Generated texts that find the corners of a tokenizer."""

import random

WORDS = [
    "the", "quick", "brown", "dogs", "don't", "I'll", "we've", "HELLO", "World's", "naïve", "café", "résumé", "ſ'ſ",
    "'S", "'LL", "it's", "3.14159", "1234567890", "0xFF", "main():", "x+=1;", "http://a.b/c?d=e&f", '{"key":[1,2]}',
    "...", "---", "#include<vector>",
]  # fmt: skip
BLOCKS = [  # first and last code point of runs from which characters are drawn
    (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x590, 0x5FF), (0x600, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x180B, 0x180F), (0x1E00, 0x1FFF), (0x2000, 0x206F),
    (0x2100, 0x218F), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
    (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x11380, 0x113D3), (0x1D400, 0x1D7FF),
    (0x1E030, 0x1E06D), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x31350, 0x323AF), (0xE0100, 0xE01EF),
    (0x10FFF0, 0x10FFFF),
]  # fmt: skip
SPACES = [" ", "  ", "   ", " " * 17, "\t", "\t" * 9, "\n", "\n\n", "\n" * 5, "\r\n", "\x0b", "\x0c", "\x85", "\u00a0"]
SPACES += ["\u1680", "\u180e", "\u2028", "\u200b", "\u3000"]
CONTROLS = [chr(c) for c in [*range(32), 0x7F, 0x80, 0x9F, 0x200D, 0x2581, 0xFEFF, 0xFFFD]]


def generated_strings(count: int, specials: list[str], seed: int = 0) -> list[str]:
    """Mixed scripts, runs of white space, digits, control characters and ``specials``, the same for equal arguments."""
    rng = random.Random(seed)

    def part() -> str:
        kind = rng.randrange(8)
        if kind == 0:
            return rng.choice(["", " "]) + rng.choice(WORDS)
        if kind == 1:
            first, last = rng.choice(BLOCKS)
            return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))
        if kind == 2:
            return "".join(rng.choices(SPACES, k=rng.randint(1, 4)))
        if kind == 3:
            return "".join(rng.choices("0123456789", k=rng.randint(1, 12)))
        if kind == 4:
            return "".join(rng.choices(CONTROLS, k=rng.randint(1, 3)))
        if kind == 5:
            return rng.choice(specials)
        if kind == 6:
            return rng.choice("aA ▁!1.é中\n") * rng.randint(1, 40)
        code_point = rng.randrange(0x110000)
        return "" if 0xD800 <= code_point < 0xE000 else chr(code_point)

    return ["".join(part() for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 13, 21]))) for _ in range(count)]

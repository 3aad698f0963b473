"""Prints nfc_tables.inc from the Unicode character database that Python carries.

    python3.6 generate_nfc_tables.py > nfc_tables.inc

Python 3.6 carries Unicode 9.0, the version by which the tokenizers library normalizes and with which models were
therefore trained. Later versions differ only in characters that were added after it.
"""

import unicodedata as ucd

HANGUL = range(0xAC00, 0xD7A4)  # composed and decomposed by arithmetic


def rows(entries, width=110):
    lines, line = [], "   "
    for entry in entries:
        if len(line) + len(entry) + 1 > width:
            lines.append(line)
            line = "   "
        line += " " + entry
    return "\n".join([*lines, line])


def main():
    decompositions, classes = [], []
    for point in range(0x110000):
        char = chr(point)
        mapping = ucd.decomposition(char)
        if mapping and "<" not in mapping and point not in HANGUL:
            parts = [int(part, 16) for part in mapping.split()]
            recomposes = int(len(parts) == 2 and ucd.normalize("NFC", char) == char)
            parts += [0] * (2 - len(parts))
            decompositions.append(f"{{0x{point:x}, 0x{parts[0]:x}, 0x{parts[1]:x}, {recomposes}}},")
        combining = ucd.combining(char)
        if combining and classes and classes[-1][1] == point - 1 and classes[-1][2] == combining:
            classes[-1][1] = point
        elif combining:
            classes.append([point, point, combining])
    print(f"// Unicode {ucd.unidata_version}; written by generate_nfc_tables.py.\n")
    print("// {character, its first part, its second part or 0, whether the parts compose to it}")
    print("constexpr Decomposition kDecompositions[] = {\n" + rows(decompositions) + "\n};\n")
    print("// {first character, last character, canonical combining class}, where it is not 0")
    print("constexpr CombiningRange kCombiningRanges[] = {")
    print(rows([f"{{0x{first:x}, 0x{last:x}, {value}}}," for first, last, value in classes]) + "\n};")


if __name__ == "__main__":
    main()

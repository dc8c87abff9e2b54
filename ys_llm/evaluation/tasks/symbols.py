"""The ids that associative recall and copying are written in."""

N_SYMBOLS = 64  # keys; as many values, which are also what is copied
SEPARATOR, BLANK = 2 * N_SYMBOLS, 2 * N_SYMBOLS + 1
VOCAB_SIZE = 2 * N_SYMBOLS + 2

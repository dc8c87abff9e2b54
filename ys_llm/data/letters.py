"""The characters that words are made of."""

# Letters and combining marks, as ranges: `re` does not know `\p{L}`, and `\w` differs between the
# two engines and between versions of Unicode. Characters outside these ranges count as symbols.
LETTERS = (
    "A-Za-zªµºÀ-ÖØ-öø-\u1fff\u2c00-\u2dff\u3040-\ud7ff\uf900-\ufdff\ufe20-\ufe2f\ufe70-\ufefe"
    "\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc\U00010000-\U0001efff\U00020000-\U0010ffff"
)

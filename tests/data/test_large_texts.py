"""Memory does not grow with the length of a text: measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak from /proc"
)

# Everything that a first start does with a text before its model is built, in one process.
PREPARE = """
import sys
from pathlib import Path
from ys_llm.config.schema import DataConfig
from ys_llm.data import shards
from ys_llm.data.records import Texts
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.data.words import common_words
from ys_llm.evaluation.baselines import cached_baselines

text, cache, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
shards._PARALLEL_BYTES = 10**12  # how much text waits for several processes depends on the cores
config = DataConfig(path=str(text), validation_fraction=0.01)
split = load_split(config, scratch=cache, cache_dir=cache)
assert split.training and split.validation
tokenizer = train_tokenizer(Texts(split.training), kind=kind, vocab_size=400)
for side in (split.training, split.validation):
    shards.load_or_tokenize(side, tokenizer, cache_dir=cache, label="text")
cached_baselines(split.training, split.validation, cache_dir=cache)
common_words(split.training)
status = Path("/proc/self/status").read_text().split()
print(status[status.index("VmHWM:") + 1])
"""


def write_text(path: Path, n_bytes: int, n_files: int) -> Path:
    """A text of this size as one file, or as a folder of files that are all different."""
    n_lines = n_bytes // 40 // n_files
    path.mkdir()
    for number in range(n_files):
        first = number * n_lines
        lines = (f"{i:9} is a number of this long text.\n" for i in range(first, first + n_lines))
        with (path / f"{number}.txt").open("w") as file:
            file.writelines(lines)
    return path / "0.txt" if n_files == 1 else path


def peak(tmp_path: Path, n_bytes: int, n_files: int, kind: str) -> int:
    """The peak memory in bytes of a process that prepares a text of this size."""
    text = write_text(tmp_path / f"{n_bytes}", n_bytes, n_files)
    cache = tmp_path / f"{n_bytes}-cache"
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(text), str(cache), kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return 1024 * int(done.stdout)


@pytest.mark.parametrize(
    ("n_files", "kind", "megabytes"),
    [
        (1, "bytes", (24, 72)),
        pytest.param(20, "bytes", (24, 72), marks=pytest.mark.slow),
        # What compressing and learning words need grows until about 72 MB, then no more.
        pytest.param(1, "words", (72, 144), marks=pytest.mark.slow),
    ],
)
def test_a_longer_text_takes_no_more_memory(
    n_files: int, kind: str, megabytes: tuple[int, int], tmp_path: Path
) -> None:
    """A text that were kept in memory once would add all of the difference."""
    smaller, larger = (10**6 * size for size in megabytes)
    growth = peak(tmp_path, larger, n_files, kind) - peak(tmp_path, smaller, n_files, kind)
    assert growth < (larger - smaller) / 3

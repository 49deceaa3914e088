"""Buffers of one size, made and dropped again and again, fault their pages in once."""

import subprocess
import sys

LOOP = """
import resource, sys, torch
from pipe_bd.runtime.allocator import keep_pages
if sys.argv[1] == "keep":
    assert keep_pages()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    torch.ones(16 << 20)  # 64 MiB: above what glibc ever keeps by itself
for _ in range(20):  # alignment leaves holes at first
    use()
before = faults()
for _ in range(5):
    use()
print(faults() - before)
"""


def faults(*how: str) -> int:
    done = subprocess.run([sys.executable, "-c", LOOP, *how], capture_output=True, check=True)
    return int(done.stdout)


def test_pages_of_freed_tensors_are_kept() -> None:
    assert faults("keep") < 500
    assert faults("leave") > 100  # 64 MiB in huge pages is 32 faults a time, in small ones 16,384

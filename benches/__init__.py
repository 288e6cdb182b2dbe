"""Each word of stfast beside its peers: `python -m benches [words...]`, or `make bench`.

A bench never prints a number of its own alone: the peer runs in the same process, in turn
with us, on the same input, and its answer is checked first.
"""

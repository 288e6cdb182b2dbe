"""Many slides as one training set: a folder of shards, an index and gene matrices.

``_layout`` says what the folder holds; what builds it and what reads it both go by that.
"""

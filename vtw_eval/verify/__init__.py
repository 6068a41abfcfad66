"""Whether a method computes what it should with the packages that are installed here.

A tiny random model with the checkpoint's own architecture is compared with an oracle that masks instead of removing.
"""

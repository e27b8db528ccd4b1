"""Porting faults to plant, by what they break: each is a decorated function in one of these files.

A new one is put on record by ``python -m alignment_tests.meta_tests --only NAME``.
"""

"""Chaos: real faults in the real stack, and what its clients see of them. `README.md` says what is promised.

Read `case.py` first, then one of `cases/`: a case is a fault, a promise, and steps that judge the promise from outside.
"""

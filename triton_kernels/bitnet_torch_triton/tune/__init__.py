"""Tuning the launch table on the machine at hand: ``bitnet bench tune``.

``candidates.py`` says which configurations are worth a try, ``search.py`` tries them, each verified
before it is timed, and ``store.py`` keeps what is faster than the shipped row in a file of the
user's, which ``policy.py`` reads once. Nothing is tuned unasked.
"""

"""How much does xtrainer add to a hand-written loop, and how much do its peers?

Synopsis:
    python -m benchmarks
    python -m benchmarks --only mlp evaluation --repeats 9
"""

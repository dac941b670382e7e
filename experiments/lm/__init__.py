"""What does the byte language model consist of? Its text, its model, and the model it must beat.

Synopsis:
    from lm.text import load_splits, RandomWindows, SequentialWindows
    from lm.model import Transformer
    from lm.trigram import Trigram
"""

"""What does the GAN experiment consist of? The points it imitates and its two networks.

Synopsis:
    from generative.data import load_target, make_sets
    from generative.model import Gan
"""

"""What does the digits experiment consist of? Its images and its model.

Synopsis:
    from vision.data import ImageLoader, load_digits
    from vision.model import DigitsCNN
"""

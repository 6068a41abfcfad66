"""Short videos of coloured shapes that move, blink, appear, vanish or rest; eight frames of 64 x 64 pixels.

A frame is 16 vision tokens and one for the whole, a video 136.
"""

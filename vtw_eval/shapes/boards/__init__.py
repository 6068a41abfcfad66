"""Harder scenes than those of :mod:`vtw_eval.shapes`: boards with up to nine objects, digits on them, and clutter.

An image is 256 vision tokens; questions ask for positions, digits and relations too, some in two steps.
"""

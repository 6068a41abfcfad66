"""Models of other architectures that answer about boards, and how they are trained: a module each.

:mod:`~vtw_eval.shapes.boards.making.families.qwen2_vl`, :mod:`~vtw_eval.shapes.boards.making.families.internvl`.
"""

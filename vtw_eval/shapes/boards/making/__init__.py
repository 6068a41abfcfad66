"""How the models that answer about boards are trained: ``python -m vtw_eval.shapes.boards.making.train``."""

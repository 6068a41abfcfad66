"""How the model that answers about moves is trained: ``python -m vtw_eval.shapes.moves.making.video_llava``."""

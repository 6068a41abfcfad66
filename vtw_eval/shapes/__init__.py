"""The embedded default: a small vision-language model trained on rendered coloured shapes, and its data.

Nothing is imported here, so that ``import vtw_eval.shapes`` stays cheap; import the module you need:

* :mod:`vtw_eval.shapes.scenes` -- scenes: sampling, the train/test split, rendering;
* :mod:`vtw_eval.shapes.questions` -- questions about a scene with their answers;
* :mod:`vtw_eval.shapes.data` -- the held-out test sets, cached on disk;
* :mod:`vtw_eval.shapes.processor`, :mod:`vtw_eval.shapes.making.model` -- the untrained model and its processor;
* :mod:`vtw_eval.shapes.making.train` -- the training (``python -m ...``).
"""

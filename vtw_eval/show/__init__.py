"""What methods keep of a picture, layer by layer, and what the model then answers."""

from vtw_eval.show.answers import Scene, Shown, show
from vtw_eval.show.page import page
from vtw_eval.show.sight import Panel, Sight, look
from vtw_eval.show.steps import Step, steps

__all__ = ["Panel", "Scene", "Shown", "Sight", "Step", "look", "page", "show", "steps"]

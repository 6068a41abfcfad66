"""The moves tasks: questions about short videos of shapes, in the wording of TGIF-QA and Video-MME."""

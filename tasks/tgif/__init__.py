"""TGIF-QA, frame question answering."""

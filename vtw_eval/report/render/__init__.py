"""A report as blocks, and the blocks as Markdown, HTML and LaTeX."""

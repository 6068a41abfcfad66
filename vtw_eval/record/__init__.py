"""What is kept of evaluations: cells, their documents and costs, and the folder that holds them; pydantic only."""

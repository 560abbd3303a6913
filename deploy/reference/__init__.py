"""Pages of documentation that are made of the code; `python -m deploy.reference` writes them."""

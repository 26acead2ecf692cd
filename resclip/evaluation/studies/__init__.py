"""The papers' own studies, by one command each; `catalogue` lists them."""

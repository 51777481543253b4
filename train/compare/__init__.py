"""Runs side by side: what they were trained with and what came of it, as a table, a page or JSON."""
